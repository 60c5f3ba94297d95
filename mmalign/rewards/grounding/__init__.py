"""Rewards on where things are in a picture."""
