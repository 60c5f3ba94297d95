"""Rules by which several models become one: soups, stages, residues, and a ratio for each part of the depth."""

from mmalign.rooms import furnish

furnish(__name__)
