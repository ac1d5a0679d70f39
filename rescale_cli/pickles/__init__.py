"""Pickles, read by a machine that runs nothing; and the tensors that they speak of."""
