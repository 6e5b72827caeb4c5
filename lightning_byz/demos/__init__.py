"""A module and its data for the quickstart; nothing in them knows about this package."""

from .digits import DigitsClassifier, DigitsData

__all__ = ["DigitsClassifier", "DigitsData"]
