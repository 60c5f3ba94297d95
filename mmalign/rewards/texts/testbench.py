"""Code in any language, built and run with the prompt's testbench by commands that the config names."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Count, Positive, Share, Size
from mmalign.rewards._shared.completions import Pattern, answers, texts
from mmalign.rewards._shared.sandbox import Limits, refuse, run
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.texts.code_tests import code_of, say
from mmalign.types import UserError


def testbench(  # the published reward's own settings
    *, commands: Sequence[Sequence[str]], file: str, bench: str, languages: Sequence[str] = ("",),
    passed: str | None = None, built: Share = 0.0, seconds: Positive = 30.0, memory: Size = 2**31,
    isolate: Literal["try", "must", "no"] = "try", at_once: Count = 4, column: Column = "bench",
) -> Scorer:  # fmt: skip
    """1 where all commands end well (and the last one prints ``passed``), ``built`` where all but the last do, 0 elsewhere; in 0..1.

    For hardware descriptions, for instance: ``commands: [[iverilog, -g2012, -o, run, design.v, bench.v], [vvp, run]], file: design.v,
    bench: bench.v, languages: [verilog, v, ""], passed: "ALL PASSED"``.

    Args:
        column: of the prompts, that holds each one's testbench, as text.
        commands: programs with their arguments, run one after the other in a fresh folder, without a shell.
        file, bench: names that the completion's code and the testbench have there.
        languages: of the fence that holds the code (``""``: a fence without one); the last one, or else the whole completion.
        built: what it is worth that all commands but the last end well, 0 to below 1.
        passed: a regular expression to be found in what the last command prints; null where ending well says enough, which a
            simulator's rarely does.
        seconds, memory, isolate, at_once: as of ``code_tests``, for each command.

    **What it does not protect from** is in ``rewards/_shared/sandbox.py``.

    Errors: UserError, also for a program that is not installed.
    """
    limits = Limits(seconds=seconds, memory=memory, isolate=isolate)
    if not commands or not all(command and all(isinstance(word, str) for word in command) for command in commands):
        raise UserError(f"testbench.commands: got {commands!r}, takes a list of commands: [[program, argument, ...], ...]")
    for name in (file, bench):
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise UserError(f"testbench: got the file name {name!r}, takes letters, digits, dots, dashes")
    if file == bench or not 0 <= built < 1 or at_once < 1:
        got = f"file={file!r}, bench={bench!r}, built={built}, at_once={at_once}"
        raise UserError(f"testbench: got {got}, takes two names, built of 0 to below 1, at_once of 1 or more")
    if absent := [command[0] for command in commands if shutil.which(command[0]) is None and "/" not in command[0]]:
        raise UserError(f"testbench.commands: no program called {absent[0]!r} is installed")
    refuse("testbench", limits)
    wanted = Pattern("testbench.passed", passed or "", seconds)
    find = answers("testbench", column)

    def one(code: str, bench_text: str) -> float:
        done = run(commands, {file: code, bench: bench_text}, limits)
        say(done[-1])
        if done[-1].why == "start":
            return math.nan
        good = len(done) == len(commands) and done[-1].code == 0 and wanted.matches(done[-1].output, "search")
        if good:
            return 1.0
        return built if len(done) == len(commands) > 1 else 0.0

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        codes = [code_of(text, tuple(languages)) for text in texts("testbench", outputs, prompts)]
        with ThreadPoolExecutor(at_once) as pool:
            return torch.tensor(list(pool.map(one, codes, find(prompts, columns))), dtype=torch.float64)

    return Scorer("testbench", reward, low=0.0, high=1.0, reads=frozenset({column}))
