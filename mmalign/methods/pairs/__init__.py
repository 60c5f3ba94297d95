"""Methods that learn from pairs of which one row is preferred."""
