"""Open checkpoints of any format as tables of tensors, and read the head."""
