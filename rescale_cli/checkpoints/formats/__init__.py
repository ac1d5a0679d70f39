"""The checkpoint formats, one module each; `files.contents` says what a format gives."""
