"""What has a name, and what is said of it: mmalign's own by its files and docstrings, other code by its source."""
