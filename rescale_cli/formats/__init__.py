"""The checkpoint formats, one module each; `_interface` says what a format gives."""
