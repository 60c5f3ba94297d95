"""Kills rounds of a config before their file operations; each resume has to end as the run that was left alone, to the byte.

python scripts/fuzz/kill_rounds.py text_rounds/eva                       # made small: two rounds, two steps, eight prompts
python scripts/fuzz/kill_rounds.py text_rounds/eva --every 25 rounds=3   # and with changes to the config

A kill between two stages comes before the state is written, or before what follows; one inside before a checkpoint, a log, a file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.config import build, load
from mmalign.selftest.trials import contents

KILLS = runpy.run_path(str(Path(__file__).with_name("kills.py")))
SMALL = {
    **{"steps": 2, "samples": 2, "columns": 1, "every": 2, "checkpoint_every": 1, "warmup": 0},
    **{"records": 2, "prompts": 2, "group": 4, "micro_rows": 4},
}
PART = 8
"""Of a count of prompts or records, what is left."""


def small(value: Any, key: str = "") -> Any:
    """A config whose numbers of steps, prompts and rows are small, whatever it is made of."""
    if isinstance(value, dict):
        return {name: small(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [small(item, key) for item in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return max(2, value // PART) if key == "count" else min(value, SMALL.get(key, value))


def main(arguments: Sequence[str] | None = None) -> int:
    """How many runs ended otherwise than the one that was left alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("changes", nargs="*", help="key.sub=value")
    parser.add_argument("--every", type=int, default=1, help="of the file operations, every so many")
    parser.add_argument("--first", type=int, default=0, help="the first one that is killed before")
    options = parser.parse_args(arguments)
    node = small(load(options.config))
    node["rounds"] = min(node["rounds"], 2)

    def train(root: Path, resume: bool = False) -> None:
        own = load_changed(node, options.changes) | {"run": {"folder": str(root), "name": "run"}}
        build(own, **({"resume": True} if resume else {}))

    KILLS["child"].__globals__["TRAIN"] = train
    child, gone_on, wrong, runs, killed = KILLS["child"], KILLS["gone_on"], 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        base = Path(place).resolve()
        with contextlib.redirect_stdout(io.StringIO()):
            train(base / "warm")  # so that no process of those below imports anything
        root = base / "run"
        if child(root, count=base / "count"):
            raise SystemExit(f"the run that is not killed fails: {(root / 'rank_0.txt').read_text()}")
        operations, expected = int((base / "count").read_text()), contents(root / "run")
        for number in range(options.first, operations, options.every):
            shutil.rmtree(root, ignore_errors=True)
            runs += 1
            killed += child(root, before=number) == -signal.SIGKILL
            if what := gone_on(root, expected):
                wrong += 1
                print(f"killed before operation {number}: {what}", flush=True)
    print(f"{options.config}: {runs} runs of {operations} file operations, {killed} killed before one; {wrong} wrong")
    return wrong


def load_changed(node: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A config after changes to it."""
    from copy import deepcopy

    from mmalign.config.overrides import override

    changed = deepcopy(node)
    for word in changes:
        override(changed, word)
    return changed


if __name__ == "__main__":
    sys.exit(bool(main()))
