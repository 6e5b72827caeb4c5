"""What a plain loop cannot do is refused: what was given, what is allowed, what to change."""

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_byz.rounds.trained import trained_by


def check_optimizer(optimizer: Any) -> None:
    """Refuse what cannot step on an aggregate."""
    if not isinstance(optimizer, Optimizer):
        given = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
        raise TypeError(f"RobustOptimizer got {given}: give an instance of a torch.optim.Optimizer.")
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS evaluates the loss several times a step, and a step has one aggregate of the workers' gradients: use another optimizer."
        )
    if not trained_by(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} trains nothing, so that there is no gradient to aggregate: set requires_grad=True on what should train."
        )


def check_module(module: Any) -> None:
    """Refuse what averages gradients by itself, or holds a part of each parameter only."""
    if not isinstance(module, nn.Module):
        given = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"RobustOptimizer got {given} as module: give the torch.nn.Module that the closures evaluate.")
    averaging = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    wrapper = next((type(part).__name__ for part in module.modules() if isinstance(part, averaging)), None)
    if wrapper is not None:
        raise ValueError(
            f"The module is wrapped in {wrapper}, which mixes the workers' gradients before any rule sees them: give the module itself, its .module,"
            " and evaluate that in the closures."
        )
    sharded = next((name for name, parameter in module.named_parameters() if hasattr(parameter, "device_mesh")), None)
    if sharded is not None or any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules()):
        raise ValueError(
            "The module's parameters are sharded over processes, and each worker's gradient is of all of them: give a module that is whole on each."
        )


def check_weights_here(weights: object) -> None:
    """Refuse weights that follow from loaders."""
    if isinstance(weights, str) and weights.startswith("samples"):
        raise ValueError(
            f"weights={weights!r}: a plain loop has loaders of its own, of sizes unknown here: give one number per worker, such as the sizes."
        )


def check_position(position: Sequence[int]) -> tuple[int, ...]:
    """Refuse what does not name a batch."""
    if not isinstance(position, Sequence) or any(type(number) is not int for number in position):
        raise TypeError(f"position={position!r}: give whole numbers, such as (epoch, batch index), or leave it out.")
    return tuple(position)


def check_loss(loss: object) -> None:
    """Refuse what has no gradient."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        without = " without a graph" if isinstance(loss, Tensor) and loss.numel() == 1 else ""
        raise TypeError(
            f"The closure returned {given}{without}: return the loss, a tensor of one number that depends on the parameters, or None to send nothing."
        )


def refuse_own_backward(before: Sequence[Tensor | None], after: Sequence[Tensor | None]) -> None:
    """Refuse a closure that has run the backward pass."""
    if any(one is not other for one, other in zip(before, after, strict=True)):
        raise RuntimeError(
            "The closure has run a backward pass or zero_grad() itself: return the loss, and robust.backward runs the backward pass, by backward= if"
            " it is another than Tensor.backward."
        )


def refuse_second_message(worker: int, step: int) -> NoReturn:
    """Refuse a second batch where messages wait."""
    raise ValueError(
        f"worker {worker} has made its message of step {step}, and under arrivals= a worker sends one batch's gradient at a time: give it a larger"
        " batch, or robust.zero_grad() before, to drop what was sent at this step."
    )


def refuse_closure(closure: object) -> None:
    """Refuse a closure where the workers' are meant."""
    if closure is not None:
        raise ValueError(
            "RobustOptimizer.step takes no closure: give each worker's to robust.backward(worker, closure), then call robust.step()."
        )
