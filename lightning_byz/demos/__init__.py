"""Modules and their data for the configs in configs/; nothing in them knows about this package."""

from .digits import DigitsClassifier, DigitsData
from .mnist import AsynchronousMnistClassifier, MnistClassifier, MnistData
from .sites import DigitsSites

__all__ = [
    "AsynchronousMnistClassifier",
    "DigitsClassifier",
    "DigitsData",
    "DigitsSites",
    "MnistClassifier",
    "MnistData",
]
