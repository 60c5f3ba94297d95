"""Rewards on texts."""
