"""The contract of codes, for codes of your own."""

from collections.abc import Sequence

from lightning_byz.codes import Code
from lightning_byz.testing.check import chosen_laws, require_kind
from lightning_byz.testing.laws import CODE_LAWS


def check_code(code: Code, *, cases: int = 100, seed: int = 0, laws: Sequence[str] | None = None) -> None:
    """Check that a code names up to ``s`` liars in each group, whoever they are, and that the mean of all parts comes out.

    Every part is computed more than ``2 s`` times; rows are as long as they are laid out; slices decode to the bits of the whole; arguments are not
    written to, and equal ones give equal bits. Numbers of workers are the three smallest that ``check`` takes.

    Args:
        code: An instance.
        cases: As for :func:`check_aggregator`.
        seed: Likewise.
        laws: Likewise.

    Raises:
        AssertionError: For the first case that breaks a law. It names the law, the code and the case, and what was seen.
        TypeError: If ``code`` is no code.
        ValueError: If ``cases`` is not positive, or ``laws`` names none of them.

    Example:
        >>> from lightning_byz.codes import Solon
        >>> check_code(Solon(s=1, compression=2), cases=5)
        >>> class Trusting(Solon):
        ...     def locate(self, projections, *, dtype=None):
        ...         return []
        >>> check_code(Trusting(s=1, compression=2), cases=5, laws=["code_recovery"])
        Traceback (most recent call last):
        ...
        AssertionError: Trusting(s=1, compression=2) breaks the law 'code_recovery': ...
    """
    require_kind(code, Code, cases)
    for law in chosen_laws(CODE_LAWS, laws):
        law.hold(code, cases, seed)
