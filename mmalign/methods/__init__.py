"""Published methods, one file each: a sentence of objectives and a docstring. The folder is the registry."""

from mmalign.rooms import furnish

furnish(__name__)
