"""Prompts and preference records."""

from mmalign.rooms import furnish

furnish(__name__)
