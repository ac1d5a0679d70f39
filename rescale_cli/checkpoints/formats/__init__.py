"""The checkpoint formats, one module each; `core.tensors` says what a format gives."""
