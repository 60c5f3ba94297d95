"""Images and videos from wherever they are, with limits that hold before anything is decoded, and one line of reason where it fails.

``picture`` and ``footage`` read; ``Limits`` says what they may cost; ``Broken`` is all that they raise of a file, however it is damaged.
"""

from mmalign.media.images import address, image, picture
from mmalign.media.limits import Animated, Broken, Limits, named
from mmalign.media.medium import KINDS, ONE, Medium, canonical_bytes
from mmalign.media.sources import is_address, read_bytes, read_whole
from mmalign.media.videos import Footage, footage, video

__all__ = [
    "KINDS",
    "ONE",
    "Animated",
    "Broken",
    "Footage",
    "Limits",
    "Medium",
    "address",
    "canonical_bytes",
    "footage",
    "image",
    "is_address",
    "named",
    "picture",
    "read_bytes",
    "read_whole",
    "video",
]
