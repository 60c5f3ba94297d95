"""Completions drawn: token by token, by a server, in turns with an environment."""
