"""A path to a table of tensors, whatever the format; and the head among them to arrays."""
