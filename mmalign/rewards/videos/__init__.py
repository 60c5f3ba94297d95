"""Rewards on videos."""
