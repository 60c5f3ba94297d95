"""Small runs of every recipe, as users start them: the configs of ``configs/selftest``."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.types import UserError

UNLIKE = ("report.html", "versions.json", ".lock")
"""Files of a run that are made anew of the others, say what it ran with, or are empty."""
TIMES = ("seconds", "train_seconds", "crc32")  # crc32: of a state that holds times


class Trial(NamedTuple):
    """A small run. name: of its config. recipe: by name. least: processes that it takes."""

    name: str
    recipe: str
    least: int = 1

    def train(self, root: Path, *, resume: bool = False, steps: int | None = None, alone: bool = False) -> Any:
        """Trains it in ``root/run``, or goes on with it; the finished run. steps, or rounds: other than the config's. alone: no shards."""
        from mmalign.config import build, load

        length = "rounds" if self.recipe == "rounds" else "steps"
        more = [] if steps is None else [f"{length}={steps}"]
        more += ["devices.place=replicate"] if alone and self.least > 1 else []
        return build(load(f"selftest/{self.name}", [f"run.folder={json.dumps(str(root))}", *more]), **({"resume": True} if resume else {}))


def trials() -> list[Trial]:
    """All of them. Errors: UserError for a recipe without one."""
    from mmalign.config import load
    from mmalign.rooms import index, resource

    names = sorted(path.stem for path in resource("configs/selftest").glob("*.yaml"))
    configs = [load(f"selftest/{name}", []) for name in names]
    small = [Trial(name, str(config["use"]), 2 if "devices" in config else 1) for name, config in zip(names, configs, strict=True)]
    if bare := sorted(index("mmalign.recipes").keys() - {trial.recipe for trial in small}):
        raise UserError(f"selftest: the recipe {bare[0]} has no small run; takes a config of it in configs/selftest")
    return small


@contextmanager
def warm(some: Sequence[Trial], root: Path) -> Iterator[None]:
    """Trains a step of each in this process, so that those forked from it inside the block import nothing, and never wait for its threads.

    GPUs are hidden meanwhile: the runs are small, and a process that has begun to use one cannot be forked.
    """
    import torch

    name, threads = "CUDA_VISIBLE_DEVICES", torch.get_num_threads()
    before = os.environ.get(name)
    torch.set_num_threads(1)
    os.environ[name] = ""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            for trial in some:
                trial.train(root / f"warm-{trial.name}", steps=1, alone=True)
                if trial.least > 1:
                    importlib.import_module("torch.distributed.fsdp")
                    importlib.import_module("torch.distributed.tensor")
        yield
    finally:
        torch.set_num_threads(threads)
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def contents(run: Path) -> dict[str, str]:
    """A digest of every file of a run; of those with times in them, of the rest. The page and what it ran with are left out."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in _files(run)}


def _files(run: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name not in UNLIKE):
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = [data] if path.suffix == ".json" else data.splitlines()
            data = json.dumps([_timeless(json.loads(line)) for line in lines]).encode()
        yield str(path.relative_to(run)), data


def _timeless(value: Any) -> Any:
    """JSON without times."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def differing(run: Path, expected: dict[str, str]) -> list[str]:
    """The files that are not what they are expected to be, or not there, or too many."""
    there = contents(run)
    return sorted(name for name in {*there, *expected} if there.get(name) != expected.get(name))
