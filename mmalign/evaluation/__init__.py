"""Measures of what alignment did: for the model, and against it."""

from mmalign.rooms import furnish

furnish(__name__)
