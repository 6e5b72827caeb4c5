"""Attacks: what Byzantine workers send, and what they do to their data."""

from lightning_byz.attacks.alie import ALIE
from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.bit_flip import BitFlip
from lightning_byz.attacks.constant import Constant
from lightning_byz.attacks.gaussian import Gaussian
from lightning_byz.attacks.ipm import IPM
from lightning_byz.attacks.label_flip import LabelFlip
from lightning_byz.attacks.mimic import Mimic
from lightning_byz.attacks.min_max import MinMax
from lightning_byz.attacks.min_sum import MinSum
from lightning_byz.attacks.non_finite import NonFinite
from lightning_byz.attacks.optimized import Optimized
from lightning_byz.attacks.replay import Replay
from lightning_byz.attacks.reverse_gradient import ReverseGradient
from lightning_byz.attacks.sight import Sight
from lightning_byz.attacks.sign_flip import SignFlip

__all__ = [
    "ALIE",
    "IPM",
    "Attack",
    "BitFlip",
    "Constant",
    "Gaussian",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "NonFinite",
    "Optimized",
    "Replay",
    "ReverseGradient",
    "Sight",
    "SignFlip",
]
