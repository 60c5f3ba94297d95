"""Alignment while sampling, without training."""

from mmalign.rooms import furnish

furnish(__name__)
