"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

from mmalign.training.updates import allocator

FAULTS = """
import ctypes, resource, sys
from mmalign.training.updates import allocator
if sys.argv[1] == "kept":
    assert allocator.keep()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step():
    some = [library.malloc(20 * 2**20) for _ in range(6)]
    for place in some:
        ctypes.memset(place, 1, 20 * 2**20)
    for place in some:
        library.free(place)
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_of_one_step_are_there_in_the_next():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)

    if platform.libc_ver()[0] != "glibc":
        assert not allocator.keep()  # no other C library can be told
        return
    kept, plain = faults("kept"), faults("plain")
    assert kept < 1000 < plain / 10, (kept, plain)
