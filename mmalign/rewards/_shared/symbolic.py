"""Equality of answers in LaTeX, by math-verify, in a process that can be ended."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmalign.types import UserError

WORKER = Path(__file__).with_name("symbolic_worker.py")
MEMORY = 2**31  # bytes of address space of one comparison
AT_ONCE = 2
START = 120.0  # seconds that loading the library may take on a busy machine

Pair = tuple[str, str]


class Comparer:
    """Compares pairs ``(right answer, given answer)``; its process starts at the first of them, and again after it broke.

    owner: who is named in messages. seconds: of the processor's time, for one pair.
    """

    def __init__(self, owner: str, seconds: float) -> None:
        if find_spec("math_verify") is None:
            raise UserError(f"{owner}: needs the package math-verify, which is not installed; pip install math-verify")
        if not 0 < seconds < 3600:
            raise UserError(f"{owner}.seconds: got {seconds}, takes more than 0, below 3600")
        self.owner, self.seconds = owner, seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether the two of each pair are equal; a pair that takes too much time or memory is not, which is said in a warning."""
        different = list(dict.fromkeys(pairs))
        if not different:
            return []
        with self._lock:
            verdicts = dict(zip(different, self._verdicts(different), strict=True))
        if unknown := [pair for pair, verdict in verdicts.items() if verdict is None]:
            text = f"{self.owner}: comparing {len(unknown)} answers took more than {self.seconds:g} s, or failed; they count as wrong"
            warnings.warn(f"{text}: {unknown[0][1][:80]!r} with {unknown[0][0][:80]!r}", stacklevel=2)
        return [bool(verdicts[pair]) for pair in pairs]

    def _verdicts(self, pairs: Sequence[Pair]) -> list[bool | None]:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(pairs) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            limit = START + (10 * self.seconds + 60) * len(pairs)  # each is ended by the kernel before that
            line = process.stdout.readline() if select.select([process.stdout], [], [], limit)[0] else ""
        if not line:
            self.close()
            return [None] * len(pairs)
        verdicts: list[bool | None] = json.loads(line)
        return verdicts

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-P", "-W", "ignore", str(WORKER), str(self.seconds), str(MEMORY), str(AT_ONCE)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
                start_new_session=True,
            )  # fmt: skip
            self._end = weakref.finalize(self, _ended, self._process)
        return self._process

    def close(self) -> None:
        """Ends the process; the next pair starts another."""
        if self._process is not None:
            self._process = None
            self._end()


def _ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
