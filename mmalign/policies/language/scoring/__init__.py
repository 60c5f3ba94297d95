"""What is said of completions that are there: log-probabilities, heads, contrasts, other models."""
