"""Parts put together: every function returns a ``types.Method``."""
