"""How good predictions are, and whether a difference is one; verdicts for a pipeline, as text."""
