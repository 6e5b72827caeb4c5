"""Modules and their data for the configs in configs/; nothing in them knows about this package."""

from .digits import DigitsClassifier, DigitsData
from .libsvm import LibsvmData, LogisticRegression
from .mnist import AsynchronousMnistClassifier, MnistClassifier, MnistData
from .sites import DigitsSites

__all__ = [
    "AsynchronousMnistClassifier",
    "DigitsClassifier",
    "DigitsData",
    "DigitsSites",
    "LibsvmData",
    "LogisticRegression",
    "MnistClassifier",
    "MnistData",
]
