"""Models on a server as judges."""
