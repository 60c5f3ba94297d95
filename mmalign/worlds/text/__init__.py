"""Real English from Python's own documentation, a tiny language model of it, and rewards with a known truth."""
