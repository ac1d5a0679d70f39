"""A model over a data set in one pass, by one process or by many."""
