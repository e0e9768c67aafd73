"""Training: the functional step, stages and curricula, checkpoints, metrics."""
