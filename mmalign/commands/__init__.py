"""What the command line does besides training: compare, rehearse, export, evaluate, make pairs, sample, calibrate."""

from mmalign.rooms import furnish

furnish(__name__)
