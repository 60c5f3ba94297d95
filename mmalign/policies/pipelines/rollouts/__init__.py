"""Calls that are recorded, and played again from what was recorded."""
