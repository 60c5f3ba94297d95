"""Updates of the parameters: rows of rollouts in micro-batches, their gradient, and what becomes of it."""
