"""Find the head among the tensors of a model, from names, shapes and config.json."""
