"""Predictions to the metrics of one model, or of several side by side."""
