"""Methods that learn from the order of a whole list."""
