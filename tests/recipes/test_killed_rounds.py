"""Every loop config, made as small as it runs, killed inside of a stage and then between two: it ends as the run that was left alone."""

from __future__ import annotations

import json
import random
import runpy
import shutil
import signal
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmalign.config import build, load
from mmalign.distributed import forked
from mmalign.rooms import resource
from mmalign.selftest.trials import contents, differing
from tests.helpers.fake_server import FakeServer, likely, written

SCRIPTS = Path(__file__).parents[2] / "scripts" / "fuzz"
KILLS = runpy.run_path(str(SCRIPTS / "kills.py"))
SMALL = {
    "steps": 1, "samples": 2, "columns": 1, "every": 1, "checkpoint_every": 1, "warmup": 0, "records": 2, "prompts": 4, "group": 8,
    "micro_rows": 32, "simulations": 4, "held_out": 2, "passes": 2, "best_of": 2, "groups": 1, "prompts_at_once": 32,
}  # fmt: skip
DEFAULTS = {"align_planner": {"motions": 32, "judgements": 32, "iterations": 2, "targets": 4}}  # which its config leaves as they are
COUNT = 4  # of prompts
URL = [""]


def judged(body: dict[str, Any]) -> dict[str, Any]:
    """What a server says: a rubric to who asks for one, and to others a score that depends on every letter of the question."""
    said = json.dumps(body["messages"])
    if "Answer with the new rubric" in said:
        return written(f"Be plain. {zlib.crc32(said.encode())}")
    return likely(**{"1": 0.2, str(2 + zlib.crc32(said.encode()) % 4): 0.8})


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[FakeServer]:
    fake = FakeServer(judged)
    URL[0] = fake.url
    yield fake
    fake.kill()


def small(value: Any, key: str = "") -> Any:
    if key == "schedule":
        return value
    if isinstance(value, dict) and "url" in value:
        return value | {"url": URL[0], "backoff": 0.0}
    if isinstance(value, dict):
        kept = {name: small(item, str(name)) for name, item in value.items() if name != "metrics"}
        kept |= DEFAULTS.get(str(value.get("use")), {})
        return kept | ({"records": small(value["records"])} if "records" in value and isinstance(value["records"], dict) else {})
    if isinstance(value, list):
        return [small(item, key) for item in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key in ("count", "offset"):
        return min(value, COUNT)
    return min(value, SMALL.get(key, value))


def loops() -> Iterator[str]:
    for path in sorted(resource("configs").glob("*/*.yaml")):
        if "\nuse: rounds\n" in f"\n{path.read_text(encoding='utf-8')}" and path.parent.name != "selftest":
            yield f"{path.parent.name}/{path.stem}"


def train(config: str, root: Path, resume: bool = False) -> None:
    node = small(load(config))
    node["rounds"] = min(node["rounds"], 2)
    build(node | {"run": {"folder": str(root), "name": "run"}}, **({"resume": True} if resume else {}))


@pytest.fixture(scope="module")
def operations() -> list[str]:
    """The paths of all file operations of this process from here on, as ``scripts/fuzz/kills.py`` counts them."""
    paths: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in KILLS["EVENTS"] and isinstance(arguments[0], (str, Path)):
            paths.append(str(arguments[0]))

    sys.addaudithook(audit)
    return paths


@pytest.mark.parametrize("config", loops())
def test_a_loop_that_was_killed_ends_as_one_that_was_not(config: str, tmp_path: Path, operations: list[str]) -> None:
    root, chance = tmp_path / "run", random.Random(config)
    operations.clear()
    train(config, root)  # in this process, so that those forked from it import nothing
    there = [path for path in operations if path.startswith(str(root))]
    expected = contents(root / "run")
    shutil.rmtree(root)
    root.mkdir()
    KILLS["train"].__globals__["TRAIN"] = partial(train, config)
    said = [number for number, path in enumerate(there) if "/.rounds.json." in path]  # three of each stage
    inside = chance.choice([number for number in range(said[-3]) if f"{root}/run/round_" in there[number]])
    for kill in ({"before": inside}, {"before": chance.randrange(3), "of": "/.rounds.json."}):
        killed = forked.wait(forked.fork(1, partial(KILLS["train"], root, **kill), root, quiet=True))[0]
        assert killed == -signal.SIGKILL, (kill, forked.words(root, 1))
    train(config, root, resume=True)
    assert not (files := differing(root / "run", expected)), files
