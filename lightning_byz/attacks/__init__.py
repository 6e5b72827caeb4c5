"""Attacks: what Byzantine workers send, and what they do to their data."""

from lightning_byz.attacks.alie import ALIE
from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.ipm import IPM
from lightning_byz.attacks.non_finite import NonFinite
from lightning_byz.attacks.reverse_gradient import ReverseGradient
from lightning_byz.attacks.sign_flip import SignFlip

__all__ = [
    "ALIE",
    "IPM",
    "Attack",
    "NonFinite",
    "ReverseGradient",
    "SignFlip",
]
