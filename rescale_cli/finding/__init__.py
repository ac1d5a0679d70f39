"""Which tensor is the head: `find_head`, and the signs that it goes by."""
