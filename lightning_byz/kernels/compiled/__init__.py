"""The kernels of CPUs compiled by numba, the extra ``fast``: imported where somebody runs them and not before."""

__all__: list[str] = []
