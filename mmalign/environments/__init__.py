"""Environments: what replies to a policy in a conversation, ``(conversations) -> replies``; and tools, which are plain functions."""

from mmalign.rooms import furnish

furnish(__name__)
