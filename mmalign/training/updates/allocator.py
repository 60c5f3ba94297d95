"""Memory of the CPU that stays with the process between steps, as caching allocators do for GPUs."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of <malloc.h>
SMALL = 2**20
LARGE = 2**25  # where the C library's own threshold ends too: what is larger goes back, and leaves no holes


def keep() -> bool:
    """From now on freed memory is used again and not given back; whether that could be arranged (the GNU C library alone).

    A step takes and frees the same hundreds of megabytes as the step before it. Where they go back to the system in between, every
    page is a fault and is zeroed again: 7 to 9 in a hundred of a small language model's update on two cores.
    """
    return _set(TRIM_THRESHOLD, -1) and _set(MMAP_THRESHOLD, LARGE)


def give_back() -> bool:
    """From now on, until ``keep``, what is freed goes back to the system at once, where it has a megabyte; whether that could be arranged.

    While a model is cut, each of its blocks is whole for a moment: of 16 blocks of 16 MiB up to 700 MiB stayed with the process.
    """
    return _set(MMAP_THRESHOLD, SMALL)


def _set(what: int, value: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(what, value))
