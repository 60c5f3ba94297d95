"""Methods that follow the gradient of an expected reward through importance ratios."""
