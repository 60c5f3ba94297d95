"""Anything that generates, as a table of decisions: adapters around whole libraries, never around single models."""

from mmalign.rooms import furnish

furnish(__name__)
