"""Training on long-tailed data: ordinary, by weight vector normalization, and the baselines."""
