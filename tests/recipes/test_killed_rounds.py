"""Every loop config, made as small as it runs, killed before one of its file operations: its resume ends as the run that was left alone."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
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
        text = path.read_text(encoding="utf-8")
        if "\nuse: rounds\n" in f"\n{text}" and "\nrounds: 1\n" not in text and path.parent.name != "selftest":
            yield f"{path.parent.name}/{path.stem}"


def train(config: str, root: Path, resume: bool = False) -> None:
    node = small(load(config))
    node["rounds"] = min(node["rounds"], 2)
    build(node | {"run": {"folder": str(root), "name": "run"}}, **({"resume": True} if resume else {}))


@pytest.mark.parametrize("config", loops())
def test_a_loop_that_was_killed_ends_as_one_that_was_not(config: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    train(config, root)  # in this process, so that those forked from it import nothing
    expected = contents(root / "run")
    shutil.rmtree(root)
    KILLS["train"].__globals__["TRAIN"] = partial(train, config)
    kill = partial(KILLS["train"], root, before=20 + zlib.crc32(config.encode()) % 100)
    root.mkdir()
    assert forked.wait(forked.fork(1, kill, root, quiet=True))[0] == -signal.SIGKILL, "it has fewer file operations"
    train(config, root, resume=(root / "run").exists())
    assert differing(root / "run", expected) == []
