"""What optimizers train, under the names that a module has for it."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

Named = list[tuple[str, Tensor]]


def trained_by(optimizer: Optimizer) -> list[Tensor]:
    """Return what an optimizer trains now."""
    return [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]


def named(module: nn.Module, parameters: Sequence[Tensor]) -> Named:
    """Return parameters by name where they are the module's, else by place."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [(names.get(id(one), f"parameter {place}"), one) for place, one in enumerate(parameters)]


def held_by(module: nn.Module, optimizers: Sequence[Optimizer]) -> Named:
    """Return what several optimizers hold, frozen or not."""
    held = {
        id(one): (f"parameter {place} of optimizer {index}", one)
        for index, optimizer in enumerate(optimizers)
        for place, one in enumerate(one for group in optimizer.param_groups for one in group["params"])
    }
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [(names.get(key, name), parameter) for key, (name, parameter) in held.items()]
