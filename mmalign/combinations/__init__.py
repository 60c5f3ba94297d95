"""Several rewards as one: combinations, balances and transforms."""

from mmalign.rooms import furnish

furnish(__name__)
