"""Python that a completion writes, run against the prompt's tests in a process of its own."""

from __future__ import annotations

import json
import re
import secrets
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.rewards._shared.completions import answers, texts
from mmalign.rewards._shared.sandbox import Limits, refuse, run
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)```", re.DOTALL)


def code_tests(
    *, score: Literal["part", "all"] = "part", seconds: float = 10.0, memory: int = 2**30,
    isolate: Literal["try", "must", "no"] = "try", at_once: int = 4, column: str = "tests",
) -> Scorer:  # fmt: skip
    """The part of the prompt's tests that a completion's Python passes, in 0..1; or 1 where it passes ``all`` of them, else 0.

    The code is what stands in the last fence of three backticks (with ``python``, ``py`` or nothing after it), or else the whole
    completion. Each test runs by itself in a fresh process: the code, then the test; it has passed where it ran to its end without
    an exception and in time. Leaving early, by ``exit(0)`` say, is no pass.

    Args:
        column: of the prompts, that holds each one's tests: a list of statements, such as
            ``assert add(1, 2) == 3``, or one string, which is one test.
        seconds, memory: of one test; memory in bytes of address space.
        isolate: whether the code has no network and sees no other processes: ``try`` (said once where the system cannot), ``must``, ``no``.
        at_once: processes at a time.

    **What it does not protect from** is in ``_sandbox``: above all, the code runs as the same user, on the same files. Nor is a test
    safe from code that goes looking for it: what runs before a test can read and change it.
    Source: pass rates of unit tests, as in APPS and HumanEval. Errors: UserError.
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
        found = torch.zeros(len(prompts), dtype=torch.float64)
        for (row, _), good in zip(places, passed, strict=True):
            found[row] += float(good) / len(lists[row])
        return (found > 1 - 1e-9).double() if score == "all" else found

    return Scorer("code_tests", reward, low=0.0, high=1.0, reads=frozenset({column}))


def code_of(text: str, languages: tuple[str, ...]) -> str:
    """The code of a completion: its last fence in one of the languages, or else all of it."""
    found = [body for language, body in FENCE.findall(text) if language.casefold() in languages]
    return found[-1] if found else text


def _passes(code: str, test: str, limits: Limits) -> bool:
    word = secrets.token_hex(16)
    files = {"solution.py": f"{code}\n", "check.py": f"from solution import *\nimport solution\n{test}\nprint({word!r})\n"}
    done = run([[sys.executable, "-I", "-c", "import sys, runpy; sys.path.insert(0, '.'); runpy.run_path('check.py')"]], files, limits)[0]
    if limits.isolate != "no" and not done.isolated:
        say_open()
    return done.code == 0 and done.output.rstrip().endswith(word)


def say_open() -> None:
    """Says, once, that code runs with the network open."""
    warnings.warn("code of the model runs with the network open: this system gives no namespaces to this user", stacklevel=2)


def _tests(answer: str) -> list[str]:
    try:
        held = json.loads(answer)
    except ValueError:
        held = answer  # a test as it stands
    tests = [held] if isinstance(held, str) else held
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise UserError(f"code_tests.column: got {answer[:80]!r}, takes a list of statements, at least one")
    return tests
