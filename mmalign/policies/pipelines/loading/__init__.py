"""Pipelines before they are called: what their folders, classes and arguments say, and what makes them fit into memory."""
