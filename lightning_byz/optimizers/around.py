"""An optimizer around another, to whom groups, state and hooks belong."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_byz.inside_torch import AskedByScalers

Hook = Callable[..., Any]


class AroundOptimizer(AskedByScalers):
    """Is a torch optimizer to schedulers, hooks and gradient scalers, and keeps nothing of its own."""

    @property
    @abstractmethod
    def stepping(self) -> Optimizer:
        """The optimizer that steps."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The optimizer's groups."""
        return self.stepping.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The optimizer's state."""
        return self.stepping.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The optimizer's defaults."""
        return self.stepping.defaults

    @property
    def grad_scale(self) -> Tensor | None:
        """The scale of gradients that the optimizer divides by itself: a gradient scaler's, for the length of a step."""
        return self.stepping.grad_scale  # pyright: ignore[reportAttributeAccessIssue]

    @grad_scale.setter
    def grad_scale(self, scale: Tensor | None) -> None:
        self.stepping.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]

    @grad_scale.deleter
    def grad_scale(self) -> None:
        del self.stepping.grad_scale  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def found_inf(self) -> Tensor | None:
        """Whether a gradient scaler has found gradients that are not finite, for the length of a step."""
        return self.stepping.found_inf  # pyright: ignore[reportAttributeAccessIssue]

    @found_inf.setter
    def found_inf(self, found: Tensor | None) -> None:
        self.stepping.found_inf = found  # pyright: ignore[reportAttributeAccessIssue]

    @found_inf.deleter
    def found_inf(self) -> None:
        del self.stepping.found_inf  # pyright: ignore[reportAttributeAccessIssue]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Let the optimizer train more; in the same order in every process, between two steps."""
        self.stepping.add_param_group(param_group)

    def register_step_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.stepping.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Hook) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.stepping.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.stepping.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.stepping.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.stepping.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.stepping.register_load_state_dict_post_hook(hook, prepend)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stepping!r})"

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"A {type(self).__name__} is neither copied nor pickled: save its state_dict().")
