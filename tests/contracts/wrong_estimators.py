"""Estimators that are right, of the kinds that the library does not have, and estimators with one thing wrong each, and the law that says so."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_byz.estimators import Estimator, Gradient, WorkerMomentum


@dataclass(frozen=True)
class TwoAverages(Estimator):
    """An average of an average, both corrected for their start at zero: two vectors and a number."""

    beta: float = 0.8

    def init(self, like):
        zeros = torch.zeros_like(like, dtype=torch.float64)
        return {"once": zeros, "twice": zeros.clone(), "past": 1.0}

    def update(self, memory, gradients, *, count):
        past = memory["past"] * self.beta
        once = memory["once"].mul(self.beta).add_(gradients[0].double() * (1 - self.beta))
        twice = memory["twice"].mul(self.beta).add_(once / (1 - past) * (1 - self.beta))
        return (twice / (1 - past)).to(gradients[0].dtype), {"once": once, "twice": twice, "past": past}


@dataclass(frozen=True)
class Corrected(Estimator):
    """An average that corrects its past by the gradient of the same batch where it was made: two points."""

    points = 2

    beta: float = 0.25

    def init(self, like):
        return {"estimate": torch.zeros_like(like, dtype=torch.float64)}

    def update(self, memory, gradients, *, count):
        here, there = (gradient.double() for gradient in gradients)
        estimate = here + (1 - self.beta) * (memory["estimate"] - there) if count else here
        return estimate.to(gradients[0].dtype), {"estimate": estimate}


@dataclass(frozen=True)
class Shortened(WorkerMomentum):
    """No longer than 1: a norm is over all coordinates, and has a size of its own."""

    exceptions = frozenset({"coordinates", "scaling", "convergence"})

    def update(self, memory, gradients, *, count):
        norm = gradients[0].double().norm().clamp(min=1.0)
        return super().update(memory, [(gradients[0] / norm).to(gradients[0].dtype)], count=count)


class WritesToMemory(WorkerMomentum):
    def update(self, memory, gradients, *, count):
        momentum = memory["momentum"].mul_(self.beta).add_(gradients[0], alpha=1 - self.beta)
        return momentum.to(gradients[0].dtype), {"momentum": momentum.clone()}


class WritesIntoMapping(WorkerMomentum):
    def update(self, memory, gradients, *, count):
        estimate, left = super().update(memory, gradients, count=count)
        memory["momentum"] = left["momentum"]
        return estimate, memory


class WritesToGradient(Gradient):
    def update(self, memory, gradients, *, count):
        return gradients[0].mul_(0.5).mul(2.0), memory


class KeepsState(Gradient):
    def update(self, memory, gradients, *, count):
        last = self.__dict__.get("last", gradients[0])
        self.__dict__["last"] = gradients[0].clone()
        return (gradients[0] + last) / 2 if last.shape == gradients[0].shape else gradients[0], memory


class Draws(Gradient):
    def update(self, memory, gradients, *, count):
        return gradients[0] * (0.5 + torch.rand(())).to(gradients[0].dtype), memory


class DrawsQuietly(Gradient):
    """Puts the random state back, but depends on it."""

    def update(self, memory, gradients, *, count):
        state = torch.get_rng_state()
        factor = 0.5 + torch.rand(()).to(gradients[0].dtype)
        torch.set_rng_state(state)
        return gradients[0] * factor, memory


class RenamesMemory(WorkerMomentum):
    def update(self, memory, gradients, *, count):
        kept = {"momentum": memory.get("momentum", memory.get("average"))}
        estimate, left = super().update(kept, gradients, count=count)
        return estimate, {"average": left["momentum"]}


class NarrowsMemory(WorkerMomentum):
    def update(self, memory, gradients, *, count):
        estimate, left = super().update(memory, gradients, count=count)
        return estimate, {"momentum": left["momentum"].to(torch.bfloat16)}


class RemembersMatrix(Gradient):
    def init(self, like):
        return {"past": like.new_zeros(2, len(like))}


class BeginsAtTheGradient(WorkerMomentum):
    def init(self, like):
        return {"momentum": like.to(torch.promote_types(like.dtype, torch.float32), copy=True)}


class WidensTheEstimate(WorkerMomentum):
    def update(self, memory, gradients, *, count):
        estimate, left = super().update(memory, gradients, count=count)
        return estimate.double(), left


class DropsACoordinate(Gradient):
    def update(self, memory, gradients, *, count):
        return gradients[0][1:], memory


class ForgetsACoordinate(Gradient):
    def update(self, memory, gradients, *, count):
        estimate = gradients[0].clone()
        estimate[-1] = 0.0
        return estimate, memory


class MixesCoordinates(Gradient):
    def update(self, memory, gradients, *, count):
        return (gradients[0] + gradients[0].roll(1)) / 2, memory


class DividesBySpread(Estimator):
    """Divides by what a coordinate that has just joined has not had yet."""

    def init(self, like):
        return {"sum": torch.zeros_like(like, dtype=torch.float64), "size": torch.zeros_like(like, dtype=torch.float64)}

    def update(self, memory, gradients, *, count):
        total, size = memory["sum"] + gradients[0].double(), memory["size"] + gradients[0].double().abs()
        before = memory["sum"] / memory["size"] if count else 0 * total
        return (gradients[0].double() + 0 * before).to(gradients[0].dtype), {"sum": total, "size": size}


class AddsASmallNumber(Gradient):
    def update(self, memory, gradients, *, count):
        return gradients[0] / (gradients[0].abs() + 1e-8).to(gradients[0].dtype) * gradients[0].abs(), memory


class ForgetsOnSaving(WorkerMomentum):
    """Remembers beside its memory what it should remember in it."""

    recent: ClassVar[dict[int, torch.Tensor]] = {}

    def update(self, memory, gradients, *, count):
        estimate, left = super().update(memory, gradients, count=count)
        known = self.recent.get(id(memory["momentum"]), 0 * gradients[0])
        self.recent[id(left["momentum"])] = gradients[0].clone()
        return estimate + known, left


class Squares(Gradient):
    def update(self, memory, gradients, *, count):
        return gradients[0].square().sqrt() * gradients[0].sign(), memory


class IgnoresGradients(WorkerMomentum):
    def update(self, memory, gradients, *, count):
        return super().update(memory, [torch.zeros_like(gradients[0])], count=count)


class Halves(WorkerMomentum):
    def update(self, memory, gradients, *, count):
        estimate, left = super().update(memory, gradients, count=count)
        return estimate / 2, left


class NeverForgets(Corrected):
    """Adds what it should subtract from: right at the first step only."""

    def update(self, memory, gradients, *, count):
        return super().update(memory, [gradients[0], gradients[1] * 0.5], count=count)


RIGHT: list[Estimator] = [
    TwoAverages(),
    Corrected(),
    Corrected(beta=1.0),
    Shortened(),
    WorkerMomentum(0.0),
    WorkerMomentum(0.999),
]

WRONG: list[tuple[Estimator, str]] = [
    (WritesToMemory(), "estimator_inputs"),
    (WritesIntoMapping(), "estimator_inputs"),
    (WritesToGradient(), "estimator_inputs"),
    (KeepsState(), "estimator_purity"),
    (Draws(), "estimator_purity"),
    (DrawsQuietly(), "estimator_purity"),
    (RenamesMemory(), "estimator_memory"),
    (NarrowsMemory(), "estimator_memory"),
    (RemembersMatrix(), "estimator_memory"),
    (BeginsAtTheGradient(), "estimator_memory"),
    (WidensTheEstimate(), "estimator_types"),
    (DropsACoordinate(), "estimator_types"),
    (ForgetsACoordinate(), "estimator_coordinates"),
    (MixesCoordinates(), "estimator_coordinates"),
    (DividesBySpread(), "estimator_growth"),
    (AddsASmallNumber(), "estimator_scaling"),
    (ForgetsOnSaving(), "estimator_saving"),
    (Squares(), "estimator_finite"),
    (IgnoresGradients(), "estimator_convergence"),
    (Halves(), "estimator_convergence"),
    (NeverForgets(), "estimator_convergence"),
]
