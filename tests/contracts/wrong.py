"""Rules with one thing wrong each, and the law that says so."""

from dataclasses import dataclass, field

import torch

from lightning_byz.aggregators import Aggregator, CoordinateMedian, GeometricMedian, Krum, RowAverage, TrimmedMean
from lightning_byz.kernels import nearest_shares
from lightning_byz.stack import Stack


class Correct(RowAverage):
    """The rows nearest to the coordinate-wise median, up to half of the weight, as a user would write it."""

    def coefficients(self, stack, *, generator=None):
        distances = stack.squared_distances_to(stack.centre())
        shares = nearest_shares(distances[None], stack.weights, stack.total_weight / 2)[0]
        return shares / shares.sum()


class MeanForMedian(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        return stack.combination(stack.weights / stack.total_weight)


class TrimsOneTooFew(TrimmedMean):
    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        return TrimmedMean()(Stack(stack.vectors, stack.weights, max(stack.f - 1, 0)))


class ToleratesTooMuch(TrimmedMean):
    def tolerates(self, weights, f):
        return True


class KrumOn(Krum):
    """Krum on rows that are prepared, and distances that are computed, in float32 and anyhow."""

    def prepared(self, rows):
        return rows

    def coefficients(self, stack, *, generator=None):
        rows = self.prepared(stack.vectors.float())
        gram = rows @ rows.T
        distances = (gram.diagonal()[:, None] + gram.diagonal() - 2 * gram).double().nan_to_num(nan=0.0, posinf=1e300)
        shares = nearest_shares(distances, stack.weights, stack.total_weight - stack.f)
        scores = torch.where(stack.weights > 0, (shares * distances).sum(1), torch.inf)
        return torch.zeros_like(stack.weights).index_fill_(0, scores.argmin(), 1.0)


class GramInFloat32(KrumOn):
    pass


class ScaledByTheLargest(KrumOn):
    def prepared(self, rows):
        return rows / rows.abs().max().clamp(min=1e-30)


class CentredByTheMean(KrumOn):
    def prepared(self, rows):
        return rows - rows.mean(0)


class SeesOnlyItsSlice(RowAverage):
    def coefficients(self, stack, *, generator=None):
        distances = (stack.vectors - stack.centre()).double().square().sum(1)
        shares = nearest_shares(distances[None], stack.weights, stack.total_weight / 2)[0]
        return shares / shares.sum()


class WritesToRows(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        stack.vectors.nan_to_num_()
        return super().__call__(stack)


class WritesToWeights(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        result = super().__call__(stack)
        stack.weights[:] = stack.weights + 1
        return result


class HandsOutItsCache(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        return self.admit(stack).centre()


class HandsOutARow(RowAverage):
    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        return stack.vectors[int(stack.weights.argmax())]

    def coefficients(self, stack, *, generator=None):
        raise NotImplementedError


class DrawsGlobally(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        return super().__call__(stack) + 0 * torch.rand(())


class DrawsUnasked(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        if generator is not None:
            torch.rand((), generator=generator)
        return super().__call__(stack)


@dataclass(frozen=True)
class Remembers(CoordinateMedian):
    last: list = field(default_factory=list, compare=False, repr=False)

    def __call__(self, stack, *, generator=None):
        result = super().__call__(stack)
        old = self.last[-1] if self.last and self.last[-1].shape == result.shape else result
        self.last[:] = [result]
        return old.to(result.dtype) / 2 + result / 2


class IgnoresWeights(TrimmedMean):
    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        present = (stack.weights > 0).double()
        return TrimmedMean()(Stack(stack.vectors, present, stack.f * float(present.sum()) / stack.total_weight))


class CountsTheAbsent(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        return CoordinateMedian()(Stack(stack.vectors, stack.weights.clamp(min=1e-2 * float(stack.weights.max()))))


class AbsoluteWeights(RowAverage):
    def coefficients(self, stack, *, generator=None):
        return (stack.weights / (1 + stack.weights)) / (stack.weights / (1 + stack.weights)).sum()


class KeepsSlivers(TrimmedMean):
    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        order = stack.vectors.double().argsort(dim=0)
        values, weights = stack.vectors.double().gather(0, order), stack.weights[order]
        start = weights.cumsum(0) - weights
        share = ((start + weights).clamp(max=stack.total_weight - stack.f) - start.clamp(min=stack.f)).clamp(min=0)
        return ((share * values).sum(0) / share.sum(0)).to(stack.vectors.dtype)


class AdmitsAnything(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        return stack.vectors.median(0).values


class ReturnsFloat32(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        return super().__call__(stack).float()


class AddsInItsDtype(TrimmedMean):
    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        return stack.vectors.mT.mv(stack.weights.to(stack.vectors.dtype)) / stack.total_weight


class FollowsTheFirst(RowAverage):
    def coefficients(self, stack, *, generator=None):
        return torch.zeros_like(stack.weights).index_fill_(0, stack.weights.gt(0).double().argmax(), 1.0)


class LeansUpwards(Aggregator):
    """Not symmetric."""

    condition = "f < W / 2"

    def tolerates(self, weights, f):
        return 2 * f < sum(weights) * (1 - 1e-6)

    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        spread = (stack.weights / stack.total_weight) @ stack.vectors.double().sub(stack.centre().double()).abs()
        return (stack.centre().double() + spread).clamp(-1e300, 1e300).to(stack.vectors.dtype)


class FixedRadius(RowAverage):
    def coefficients(self, stack, *, generator=None):
        near = stack.weights * (stack.squared_distances_to(stack.centre()) <= 9.0)
        near = near if bool(near.any()) else stack.weights
        return near / near.sum()


class ShortestRow(RowAverage):
    def coefficients(self, stack, *, generator=None):
        lengths = torch.where(stack.weights > 0, stack.squared_norms(), torch.inf)
        return torch.zeros_like(stack.weights).index_fill_(0, lengths.argmin(), 1.0)


class BoundTooSmall(CoordinateMedian):
    def kappa(self, n, f):
        return super().kappa(n, f) / 10


class Boasts(GeometricMedian):
    def explain(self, stack, *, generator=None):
        return self(stack), self.admit(stack).weights / stack.total_weight


class MisspellsItsExceptions(CoordinateMedian):
    exceptions = frozenset({"permutations"})


class NeedsNoGenerator(CoordinateMedian):
    random = True


class TakesWeightsItRefuses(CoordinateMedian):
    unequal_weights = False

    def admit(self, stack):
        return stack.sanitised()


class ReadsTheReference(CoordinateMedian):
    def __call__(self, stack, *, generator=None):
        result = super().__call__(stack)
        return result if stack.reference is None else result / 2 + stack.reference / 2


WRONG = [
    (MeanForMedian(), "coalitions"),
    (MeanForMedian(), "searching"),
    (TrimsOneTooFew(), "coalitions"),
    (ToleratesTooMuch(), "refusals"),
    (GramInFloat32(), "magnitudes"),
    (ScaledByTheLargest(), "magnitudes"),
    (CentredByTheMean(), "magnitudes"),
    (SeesOnlyItsSlice(), "slices"),
    (WritesToRows(), "inputs"),
    (WritesToWeights(), "inputs"),
    (HandsOutItsCache(), "ownership"),
    (HandsOutARow(), "ownership"),
    (DrawsGlobally(), "randomness"),
    (DrawsUnasked(), "unused_generator"),
    (Remembers(), "randomness"),
    (IgnoresWeights(), "repetition"),
    (CountsTheAbsent(), "absence"),
    (AbsoluteWeights(), "proportions"),
    (KeepsSlivers(), "slivers"),
    (AdmitsAnything(), "faults"),
    (AdmitsAnything(), "too_many"),
    (AdmitsAnything(), "no_weight"),
    (ReturnsFloat32(), "types"),
    (AddsInItsDtype(), "faults"),
    (FollowsTheFirst(), "permutation"),
    (LeansUpwards(), "scaling"),
    (FixedRadius(), "scaling"),
    (ShortestRow(), "translation"),
    (BoundTooSmall(), "searching"),
    (BoundTooSmall(), "faults"),
    (Boasts(), "coefficients"),
    (MisspellsItsExceptions(), "class_data"),
    (NeedsNoGenerator(), "randomness"),
    (TakesWeightsItRefuses(), "refused_weights"),
    (ReadsTheReference(), "no_reference"),
]
