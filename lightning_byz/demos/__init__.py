"""A module and its data for the quickstart; nothing in them knows about this package."""

from .digits import DigitsClassifier, DigitsData
from .sites import DigitsSites

__all__ = ["DigitsClassifier", "DigitsData", "DigitsSites"]
