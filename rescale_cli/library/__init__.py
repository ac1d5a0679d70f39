"""The Python API beyond files: from counts and logits to a strength, and to a model in memory."""
