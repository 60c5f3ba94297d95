"""Runs one command under limits; started by `_sandbox` as a script, with nothing of mmalign imported.

argv: a JSON object with ``limits`` (name of a resource -> number), ``isolate`` (whether to leave the network and the other processes
behind), ``told`` (a file that gets ``isolated`` or ``shared`` before the command starts) and ``command``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

NEWUSER, NEWPID, NEWNET, NEWIPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG
NO_NEW_PRIVILEGES = 38


def main() -> int:
    """Applies the limits and becomes the command, or waits for it."""
    asked = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    isolated = False
    if libc is not None:
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        isolated = asked["isolate"] and libc.unshare(NEWUSER | NEWPID | NEWNET | NEWIPC) == 0
    with open(asked["told"], "w", encoding="utf-8") as file:
        file.write("isolated" if isolated else "shared")
    child = os.fork() if isolated else 0  # the first process of the new numbering; all others end with it
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if libc is not None:
        libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    for name, most in asked["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    os.execvpe(asked["command"][0], asked["command"], dict(os.environ))


if __name__ == "__main__":
    sys.exit(main())
