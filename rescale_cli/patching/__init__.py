"""What `apply`, `verify` and `revert` do: decided in full, written aside, proven, recorded."""
