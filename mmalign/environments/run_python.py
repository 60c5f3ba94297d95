"""Python that a model writes, as a tool."""

from __future__ import annotations

import sys
from typing import Literal

from mmalign.arguments.ranges import Positive, Size
from mmalign.environments._parts import Tool
from mmalign.rewards._shared.sandbox import Done, Limits, refuse, run
from mmalign.rewards.texts.code_tests import code_of, say

LANGUAGES = ("python", "py", "python3", "")
LAST = 1000  # letters of what a program that failed has printed


def run_python(*, seconds: Positive = 5.0, memory: Size = 2**30, isolate: Literal["try", "must", "no"] = "try") -> Tool:
    """Tool: what a Python program prints. Each call is a fresh process in a fresh folder; nothing is kept from one to the next.

    The program is the last fence of three backticks in what the model writes, or else all of it. It raises (and so answers, see ``tools``)
    the end of what a program printed that failed, and what ended one beyond its limits (also 256 MiB on the disk, 64 processes, 1 MiB of
    output).

    Args:
        seconds: of the processor's time, and by the clock with two more; ``tools.seconds`` goes before it where that is less, and the
            process then still ends by itself.
        memory: bytes; of a process's address space, and of what all its processes hold.
        isolate: whether the program has no network, sees no other processes and writes in its folder alone: ``try`` (said once where
            the system cannot), ``must``, ``no``.

    **What it does not protect from** is in ``rewards/_shared/sandbox.py``: above all, the code runs as the same user, and can read what
    that user can read.

    Errors: UserError for settings out of range, and a system that cannot run or isolate programs.

    Examples:
        >>> python = mm.environments.run_python()
        >>> python("print(sum(range(5)))")
        '10'
    """
    limits = Limits(seconds=seconds, memory=memory, isolate=isolate)
    refuse("run_python", limits)

    def python(code: str) -> str:
        """What a Python program prints."""
        done = run([[sys.executable, "-I", "program.py"]], {"program.py": f"{code_of(code, LANGUAGES)}\n"}, limits)[0]
        say(done)
        if done.code == 0:
            return done.output.strip()
        raise RuntimeError(_why(done, limits))

    return python


def _why(done: Done, limits: Limits) -> str:
    """Why a program failed, and the end of what it printed."""
    reasons = {"start": "could not be started", "time": f"ran past its {limits.seconds:g} s"}
    why = f"ended with {done.code}" if done.code is not None else reasons.get(done.why, f"was ended for its {done.why}")
    return f"{why}: {done.output.strip()[-LAST:]}".removesuffix(": ")
