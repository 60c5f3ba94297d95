"""Methods that learn from single rows, good or bad."""
