"""Which kernels run on CPUs: those of torch or, where numba is installed (the extra ``fast``), compiled ones.

Order statistics have the same bits on both paths; sums may differ in the last one, so that all ranks of a run must take the same.
"""

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from lightning_byz.errors import warn_once
from lightning_byz.kernels.networks import MOST

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_MANY = 2**22  # numbers, whose median takes torch about 50 ms on one core


class _Choice:
    """``own`` is set by ``choose``, or when somebody asks for the first time; ``shared`` by the ranks of a run together."""

    own: bool | None = None
    shared: bool = True


def available() -> bool:
    """Whether this process can compile: numba is there and works, and ``LIGHTNING_BYZ_KERNELS=torch`` is not set."""
    wanted = os.environ.get("LIGHTNING_BYZ_KERNELS", "")
    if wanted not in ("", "torch", "compiled"):
        raise ValueError(f'LIGHTNING_BYZ_KERNELS must be "torch" or "compiled", or not be set, not {wanted!r}')
    if wanted == "torch":
        return False
    try:
        importlib.import_module("lightning_byz.kernels.compiled.tensors")
    except ModuleNotFoundError as error:
        if wanted:
            raise ModuleNotFoundError(
                f"LIGHTNING_BYZ_KERNELS=compiled needs numba: pip install 'lightning-byz[fast]' ({error})"
            ) from error
        return False
    except Exception as error:  # such as a NumPy that this numba does not know yet
        if wanted:
            raise
        warn_once(f"numba is installed but cannot be used, so that the slower kernels of torch run: {error}")
        return False
    return True


def choose(compiled: bool) -> None:
    """Take the compiled kernels, or torch's, from now on in this process."""
    if compiled and not available():
        raise ValueError("there are no compiled kernels in this process: pip install 'lightning-byz[fast]'")
    _Choice.own = compiled


def own() -> bool:
    """Whether this process, if it is asked alone, takes the compiled kernels."""
    if _Choice.own is None:
        _Choice.own = available()
    return _Choice.own


def share(compiled: bool) -> None:
    """Say whether all ranks of the run that begins take the compiled kernels."""
    _Choice.shared = compiled


def chosen() -> bool:
    """Whether the compiled kernels run."""
    return _Choice.shared and own()


def described(numbers: int) -> str:
    """A word on the kernels of this process, and how to get faster ones where stacks have many ``numbers``."""
    if chosen():
        return "compiled kernels"
    slow = f", slow for {numbers:,} numbers a step: pip install 'lightning-byz[fast]'" if numbers >= _MANY else ""
    return f"kernels of torch{slow}"


def compiled(vectors: Tensor, rows: int = 0) -> Any:
    """The compiled kernels, if they run and take ``vectors`` and as many ``rows`` to order; else None."""
    if (
        not vectors.numel()
        or vectors.device.type != "cpu"
        or vectors.dtype not in _DTYPES
        or rows > MOST
        or not chosen()
    ):
        return None
    return importlib.import_module("lightning_byz.kernels.compiled.tensors")
