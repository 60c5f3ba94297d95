"""Rewards on images."""
