"""Compares answers in LaTeX by math-verify; started by ``symbolic`` as a script, with nothing of mmalign imported.

argv: seconds of the processor's time for a pair, bytes of address space, pairs at a time. Each line of stdin is a JSON list of pairs
``[right, given]``, each line of stdout the list of what came of them: true, false, or null for a pair that took too much.

Every pair is compared in a fork, which the kernel ends when its time is up: a power of a large number holds the interpreter, and no
exception or thread of Python comes between. The process that forks has the library loaded, so that a pair costs milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys

EQUAL, DIFFERENT = 0, 1  # exit statuses of a fork; whatever else it ends with is no verdict


def main() -> None:
    """Answers until stdin is closed."""
    seconds, memory, at_once = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import math_verify  # noqa: F401 (loaded once, before the forks)

    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        answers.write(json.dumps(_compared(json.loads(line), seconds, memory, at_once)) + "\n")
        answers.flush()


def _compared(pairs: list[list[str]], seconds: float, memory: int, at_once: int) -> list[bool | None]:
    verdicts: list[bool | None] = [None] * len(pairs)
    places: dict[int, int] = {}
    for place, (right, given) in enumerate(pairs):
        if len(places) == at_once:
            _reap(places, verdicts)
        child = os.fork()
        if child == 0:
            _fork(right, given, seconds, memory)
        places[child] = place
    while places:
        _reap(places, verdicts)
    return verdicts


def _reap(places: dict[int, int], verdicts: list[bool | None]) -> None:
    child, status = os.wait()
    verdicts[places.pop(child)] = {EQUAL: True, DIFFERENT: False}.get(os.waitstatus_to_exitcode(status))


def _fork(right: str, given: str, seconds: float, memory: int) -> None:
    """Never returns: its exit status is the verdict."""
    status = 2
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 10 * seconds + 60)  # on a machine that is busy with something else
        status = EQUAL if _equal(right, given) else DIFFERENT
    finally:
        os._exit(status)  # an exception of the library ends here too: no verdict


def _equal(right: str, given: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    whole = [LatexExtractionConfig(boxed_match_priority=0)]  # all of an answer, never the part of it that happens to parse
    read = [
        parse(rf"\boxed{{{answer}}}", extraction_config=whole, fallback_mode="no_fallback", parsing_timeout=None)
        for answer in (right, given)
    ]
    return all(read) and bool(verify(read[0], read[1], timeout_seconds=None))


if __name__ == "__main__":
    main()
