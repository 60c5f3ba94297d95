"""Rewards that are made of other rewards, or of functions of a user's."""
