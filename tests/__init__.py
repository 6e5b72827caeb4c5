"""Tests; ``check`` is the checker of types and shapes that pytest switches on in the package: an int is a float, as in Python itself."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
