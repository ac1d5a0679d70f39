"""Repair trained classifiers that ignore their rare classes, without retraining."""

__version__ = "0.1.0"
