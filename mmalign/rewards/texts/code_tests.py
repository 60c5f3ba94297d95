"""Python that a completion writes, run against the prompt's tests in a process of its own."""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Count, Positive, Size
from mmalign.rewards._shared.completions import answers, texts
from mmalign.rewards._shared.sandbox import LACKS, Done, Limits, refuse, run
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

LANGUAGE = re.compile(r"[ \t]*([\w+-]*)")


def code_tests(
    *, score: Literal["part", "all"] = "part", seconds: Positive = 10.0, memory: Size = 2**30,
    isolate: Literal["try", "must", "no"] = "try", at_once: Count = 4, column: Column = "tests",
) -> Scorer:  # fmt: skip
    """The part of the prompt's tests that a completion's Python passes, in 0..1; or 1 where it passes ``all`` of them, else 0.

    The code is what stands in the last fence of three backticks (with ``python``, ``py`` or nothing after it), or else the whole
    completion. Each test runs by itself in a fresh process: the code, then the test; it has passed where it ran to its end without
    an exception and within the limits (also 256 MiB on the disk, 64 processes, 1 MiB of output). Leaving early, by ``exit(0)`` say, is
    no pass. Where a test could not be run at all, as on a machine without memory for it, the score is missing: NaN.

    Args:
        score: ``part`` of the tests, or whether it is ``all``.
        column: of the prompts, that holds each one's tests: a list of statements, such as
            ``assert add(1, 2) == 3``, or one string, which is one test.
        seconds: of one test, of the processor's time, and by the clock with two more.
        memory: of one test, bytes; of a process's address space, and of what all its processes hold.
        isolate: whether the code has no network, sees no other processes and writes in its folder alone: ``try`` (said once where the
            system cannot), ``must``, ``no``.
        at_once: processes at a time.

    **What it does not protect from** is in ``rewards/_shared/sandbox.py``: above all, the code runs as the same user, and can read what
    that user can read. Nor is a test safe from code that goes looking for it: what runs before a test can read and change it.
    Source: pass rates of unit tests, as in APPS and HumanEval.

    Errors: UserError for settings out of range, tests that are none, and a system that cannot run or isolate them.
    """
    limits = Limits(seconds=seconds, memory=memory, isolate=isolate)
    if score not in ("part", "all") or at_once < 1:
        raise UserError(f"code_tests: got score={score!r}, at_once={at_once}, takes part or all, and 1 or more")
    refuse("code_tests", limits)
    find = answers("code_tests", column)

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        codes = [code_of(text, ("python", "py", "python3", "")) for text in texts("code_tests", outputs, prompts)]
        lists = [_tests(answer) for answer in find(prompts, columns)]
        places = [(row, test) for row, tests in enumerate(lists) for test in tests]
        with ThreadPoolExecutor(at_once) as pool:
            passed = list(pool.map(lambda place: _passes(codes[place[0]], place[1], limits), places))
        parts = torch.zeros(len(prompts), dtype=torch.float64)
        for (row, _), share in zip(places, passed, strict=True):
            parts[row] += share / len(lists[row])
        return torch.where(parts.isnan(), parts, (parts > 1 - 1e-9).double()) if score == "all" else parts

    return Scorer("code_tests", reward, low=0.0, high=1.0, reads=frozenset({column}))


def code_of(text: str, languages: tuple[str, ...]) -> str:
    """The code of a completion: its last fence in one of the languages, or else all of it."""
    code, place = text, 0
    while (start := text.find("```", place)) >= 0:
        line = text.find("\n", start)
        end = text.find("```", line + 1)
        if line < 0 or end < 0:
            break
        language = LANGUAGE.match(text, start + 3, line)
        if language is not None and language[1].casefold() in languages:
            code = text[line + 1 : end]
        place = end + 3
    return code


def _passes(code: str, test: str, limits: Limits) -> float:
    """1 or 0; NaN where nothing could be run, which is not the code's fault."""
    word = secrets.token_hex(16)
    files = {"solution.py": f"{code}\n", "check.py": f"from solution import *\nimport solution\n{test}\nprint({word!r})\n"}
    done = run([[sys.executable, "-I", "-c", "import sys, runpy; sys.path.insert(0, '.'); runpy.run_path('check.py')"]], files, limits)[0]
    say(done)
    return math.nan if done.why == "start" else float(done.code == 0 and done.output.rstrip().endswith(word))


def say(done: Done) -> None:
    """Says, once each, what code of the model is not kept from, and that it could not be run."""
    for lack in done.lacks:
        warnings.warn(f"code of the model runs {LACKS[lack]}", stacklevel=2)
    if done.why == "start":
        warnings.warn(f"code of the model could not be run, and has no score: {done.output[:200]!r}", stacklevel=2)


def _tests(answer: str) -> list[str]:
    try:
        value = json.loads(answer)
    except ValueError:
        value = answer  # a test as it stands
    tests = [value] if isinstance(value, str) else value
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise UserError(f"code_tests.column: got {answer[:80]!r}, takes a list of statements, at least one")
    return tests
