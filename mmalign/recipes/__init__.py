"""Recipes: readable functions that move tables between a policy, rewards, a method and an optimiser."""

from mmalign.rooms import furnish

furnish(__name__)
