"""Programs that a policy wrote and that fail, as prompts about what they do: the values of their variables once they have run."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mmalign.arguments.ranges import Count, Positive, Seed, Size
from mmalign.commands._answers import texts_of_outputs
from mmalign.commands._lines import Line, refuse_there, written
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.rewards._shared.sandbox import Limits, refuse, run
from mmalign.rewards.texts.code_tests import code_of, code_tests, say
from mmalign.training.journal import hashed
from mmalign.training.seeds import stream
from mmalign.types import Policy, Prompt, UserError, columns_of, contents

__all__ = ["make_value_prompts"]

ORDER = (
    "Here is a program:\n```python\n{code}\n```\nIt is run with `{test}`. What do the variables {names} hold when `{function}` ends? "
    'Answer with an object of JSON: {{"name": value}}.'
)
TRACED = """\
import json, runpy, sys
seen = {}
def values(frame):
    kept = {}
    for name, value in list(frame.f_locals.items())[:LARGEST]:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            continue
        if len(text) <= 200 and json.loads(text) == value:
            kept[name] = value
    return kept
def trace(frame, event, argument):
    if frame.f_code.co_filename.endswith("solution.py") and frame.f_code.co_name != "<module>":
        if event == "return":
            seen["function"], seen["values"] = frame.f_code.co_name, values(frame)
        return trace
    return None
sys.path.insert(0, ".")
import solution
names = {name: value for name, value in vars(solution).items() if not name.startswith("__")}
sys.settrace(trace)
try:
    exec(compile(open("test.txt").read(), "test", "exec"), {**names, "solution": solution})
except BaseException:
    pass
sys.settrace(None)
print("\\n" + WORD + json.dumps(seen))
"""


def make_value_prompts(  # what a command may be told
    policy: Policy,
    prompts: Sequence[Any],
    *,
    out: str,
    group: Count = 4,
    column: str = "tests",
    keep: bool = True,
    seconds: Positive = 5.0,
    memory: Size = 2**30,
    isolate: Literal["try", "must", "no"] = "try",
    prompts_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, int]:
    """Writes prompts about programs that fail their tests, beside those that they were written for; returns counts.

    Args:
        policy: what writes Python. group: programs to each prompt. prompts: with a column of tests, as of ``rewards.code_tests``.
        out: the file, JSON lines; it appears whole or not at all. A new prompt shows a program and one test of its, and asks what its
            variables hold when the function that was called last ends; ``values`` holds them as JSON, for ``rewards.variable_values``, and
            ``task`` is ``values``. The old ones have the task ``code``.
        column: of the tests. keep: whether the old prompts are in the file too.
        seconds, memory, isolate: of a program, as of ``code_tests``, with what its docstring says of safety.
        prompts_at_once: prompts in one rollout. seed: of the sampling.

    ``rewards: {both: {use: by_task, rewards: {code: {use: code_tests}, values: {use: variable_values}}}}`` learns both at once. Counts:
    ``prompts`` (written), ``made``, ``passed`` (programs that pass), ``untold`` (call nothing of theirs, or hold nothing that JSON says).

    Paper: CodeRL+, https://arxiv.org/abs/2510.18471 (*recalled*: execution semantics alignment from failed rollouts, on the policy, without
    further data). Deviations: new prompts are made between rounds, and not within the step whose rollouts failed; the values are those at
    the end of a call.

    Errors: UserError for a file that is there already, prompts without tests, a policy that does not answer in words, and where nothing is
    written.
    """
    refuse_there(out)
    limits, columns = Limits(seconds=seconds, memory=memory, isolate=isolate), columns_of(prompts)
    refuse("make_value_prompts", limits)
    if column not in columns:
        raise UserError(f"column: no prompt has a column {column!r}; takes one of {', '.join(columns) or 'none: they have no columns'}")
    passes = code_tests(score="all", seconds=seconds, memory=memory, isolate=isolate, column="tests")
    counts, starts, team = {"prompts": 0, "made": 0, "passed": 0, "untold": 0}, range(0, len(prompts), prompts_at_once), joined()

    def asked(start: int) -> dict[str, Any]:
        some = list(prompts[start : start + prompts_at_once])
        outputs = texts_of_outputs(policy.sample(contents(some), group, stream(seed, start, 0, "values")).outputs)
        tests = [test for test in columns[column][start : start + prompts_at_once] for _ in range(group)]
        scores = passes(outputs, [prompt for prompt in contents(some) for _ in range(group)], tests=tests).tolist()
        made = [_about(output, test, limits) if score < 1 else None for output, test, score in zip(outputs, tests, scores, strict=True)]
        return {"made": made, "passed": sum(score == 1 for score in scores)}

    def lines() -> Iterator[Line]:
        told = set[str]()
        if keep:
            yield from (_old(prompt) for prompt in prompts)
        for _, made in in_turn(team, starts, asked):
            counts["passed"] += made["passed"]
            counts["untold"] += sum(line is None for line in made["made"]) - made["passed"]
            for line in (line for line in made["made"] if line is not None and line["prompt"] not in told):
                told.add(line["prompt"])
                counts["made"] += 1
                yield line
        counts["prompts"] = counts["made"] + len(prompts) * keep
        if not counts["prompts"]:
            raise UserError(f"make_value_prompts: none of {len(prompts) * group} programs fails and tells its values; takes keep: true")

    with stopping_together(team):
        team_for(len(starts), f"rollouts of {prompts_at_once} prompts")
        settings = {"group": group, "column": column, "keep": keep, "prompts_at_once": prompts_at_once, "seed": seed}
        team.agree("make_value_prompts", {"prompts": hashed(prompts), **settings})
        written(Path(out), lines(), team)
    return counts


def _about(output: str, tests: Any, limits: Limits) -> Line | None:
    """A prompt about a program and the first of its tests; None where it calls nothing, or holds nothing that JSON can say."""
    code = code_of(output, ("python", "py", "python3", ""))
    test = str(tests[0] if isinstance(tests, (list, tuple)) else tests)
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    word = "values: "
    files = {"solution.py": f"{code}\n", "test.txt": test, "run.py": TRACED.replace("WORD", repr(word)).replace("LARGEST", "8")}
    done = run([[sys.executable, "-I", "-c", "import runpy; runpy.run_path('run.py', run_name='__main__')"]], files, limits)[0]
    say(done)
    last = done.output.rstrip().rpartition("\n")[2]
    if done.code != 0 or not last.startswith(word) or (seen := _told(last.removeprefix(word))) is None:
        return None
    names = ", ".join(f"`{name}`" for name in seen["values"])
    prompt = ORDER.format(code=code.strip(), test=test, names=names, function=seen["function"])
    return {"prompt": prompt, "task": "values", "values": json.dumps(seen["values"])}


def _told(text: str) -> dict[str, Any] | None:
    """``function`` and its ``values``; None for anything else, which a program may have printed itself."""
    try:
        seen = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(seen, dict) or not isinstance(seen.get("function"), str) or not isinstance(seen.get("values"), dict):
        return None
    return seen if seen["values"] else None


def _old(prompt: Any) -> Line:
    columns = prompt.columns if isinstance(prompt, Prompt) else {}
    return {"task": "code", **columns, "prompt": contents([prompt])[0]}
