"""The embedded defaults: small real or closed-form tasks with a known truth."""

from mmalign.rooms import furnish

furnish(__name__)
