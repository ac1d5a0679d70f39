"""Metrics of predictions, their confidence intervals, and quality gates."""
