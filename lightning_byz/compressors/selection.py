"""The largest absolute values of a vector, exactly so many, ties to the lowest index."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_CHUNK = 65536  # coordinates that stay in the cache
_FEW = 32768  # coordinates among which nothing is gained by a sample
_SAMPLE = 20000
_WIDE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def magnitudes(values: Float[Tensor, " s"]) -> Tensor:
    """Return whole numbers of the same size and order as the absolute values: their bits without the sign."""
    bits = values.contiguous().view(_WIDE[values.element_size()])
    return bits & torch.iinfo(bits.dtype).max


def largest(values: Float[Tensor, " s"], k: int) -> Int64[Tensor, " k"]:
    """Return where the ``k`` largest absolute values are, rising.

    On a CPU in one reading pass: a sample, at positions drawn once for all, says which values come into question, and the finish among these
    is exact; where the sample misled, a second pass follows. Elsewhere by torch's ``topk``, without waiting for the device.
    """
    if k >= len(values):
        return torch.arange(len(values), device=values.device)
    if values.device.type != "cpu":
        return _on_device(magnitudes(values), k)
    bits = values.detach().contiguous().view(_WIDE[values.element_size()]).numpy()
    return torch.from_numpy(_in_array(bits, k))


def _on_device(keys: Tensor, k: int) -> Int64[Tensor, " k"]:
    threshold = keys.topk(k, sorted=False).values.min()
    above, level = keys > threshold, keys == threshold
    chosen = above | (level & (level.cumsum(0) <= k - above.sum()))
    places = torch.where(chosen, chosen.cumsum(0) - 1, k)  # all that are not chosen share one more place
    numbers = torch.arange(len(keys), device=keys.device)
    return numbers.new_empty(k + 1).scatter_(0, places, numbers)[:k]


def _in_array(bits: np.ndarray, k: int) -> np.ndarray:
    mask = np.iinfo(bits.dtype).max
    for floor in _floors(bits & mask if len(bits) <= _FEW else bits[_places(len(bits))] & mask, k / len(bits)):
        found = _reaching(bits, floor, k)
        if len(found) >= k:
            break
    keys = bits[found] & mask  # pyright: ignore[reportPossiblyUnboundVariable]
    threshold = np.partition(keys, len(keys) - k)[len(keys) - k]
    chosen = keys > threshold
    level = np.flatnonzero(keys == threshold)
    chosen[level[: k - int(np.count_nonzero(chosen))]] = True
    return found[chosen]  # pyright: ignore[reportPossiblyUnboundVariable]


def _places(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, _SAMPLE)


def _floors(sample: np.ndarray, part: float) -> list:
    """Values that at least the wanted part of the vector reaches, more and more surely, the last one for certain."""
    expected = part * len(sample)
    ranks = [int(expected + sure * (expected**0.5 + 1)) + 1 for sure in (5, 20)]
    inside = [rank for rank in ranks if rank <= len(sample)]
    ordered = np.partition(sample, [len(sample) - rank for rank in inside]) if inside else sample
    return [*(ordered[len(sample) - rank] for rank in inside), sample.dtype.type(0)]


def _reaching(bits: np.ndarray, floor: np.integer, k: int) -> np.ndarray:
    """Return where keys are above ``floor``, and the first ``k`` or more places where they are equal to it."""
    keys, flags = np.empty(_CHUNK, bits.dtype), np.empty(_CHUNK, bool)
    mask, found, level = np.iinfo(bits.dtype).max, [], 0
    for low in range(0, len(bits), _CHUNK):
        part = bits[low : low + _CHUNK]
        own, reached = keys[: len(part)], flags[: len(part)]
        np.bitwise_and(part, mask, out=own)
        (np.greater_equal if level < k else np.greater)(own, floor, out=reached)
        places = np.flatnonzero(reached)
        if level < k:
            level += int(np.count_nonzero(own[places] == floor))
        found.append(places + low)
    return np.concatenate(found)
