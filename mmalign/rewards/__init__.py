"""Rewards: one file each, one function that returns a callable ``(outputs, prompts, **columns) -> [B]``."""

from mmalign.rooms import furnish

furnish(__name__)
