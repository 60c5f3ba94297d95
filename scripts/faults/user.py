"""What somebody at a terminal does: files in a folder of their own, the command, a few lines of Python; and what is printed then."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from mmalign import cli
from mmalign.rooms import resource
from mmalign.types import UserError

OFFLINE: dict[str, Any] = {
    "use": "offline",
    "policy": {"use": "transformers", "model": {"use": "text", "model": "small"}, "max_completion": 8},
    "method": {"use": "dpo", "beta": 0.1},
    "records": {"use": "texts", "path": "pairs.jsonl"},
    "steps": 2,
    "batch": {"records": 3},
    "optimizer": {"rate": 1e-3},
    "evaluation": {"every": 9, "prompts": ["the name of"], "samples": 1},
    "run": {"name": "r", "folder": "runs", "trackers": []},
}
ONLINE: dict[str, Any] = {
    **{key: value for key, value in OFFLINE.items() if key != "records"},
    "use": "online",
    "method": {"use": "grpo", "beta": 0.0},
    "prompts": ["the name of", "if the value"],
    "rewards": {"plain": {"use": "text_plain"}},
    "batch": {"prompts": 2, "group": 4},
}
PIPELINE: dict[str, Any] = {
    **ONLINE,
    "policy": {"use": "diffusers", "pipeline": {"use": "digits"}, "schedule": {"steps": 3, "kernel": {"use": "flow_sde"}}},
    "method": {"use": "flow_grpo", "ratio": "per_step", "clip": 0.2, "beta": 0.0, "std": "none"},
    "prompts": ["a handwritten seven", "a handwritten two"],
    "rewards": {"proxy": {"use": "digits_proxy"}},
    "evaluation": {"every": 9, "samples": 1, "call": {"num_inference_steps": 2}},
}
PAIRS = [
    {"prompt": "the name of", "chosen": "the file .", "rejected": "a list ."},
    {"prompt": "if the value", "chosen": "is a string .", "rejected": "the the ."},
    {"prompt": "return the", "chosen": "name .", "rejected": "of of ."},
]

OWN = '''"""Rewards of a user's own."""

import torch


def constant():
    return lambda outputs, prompts, **columns: torch.ones(len(outputs))


def unknown():
    return lambda outputs, prompts, **columns: torch.full((len(outputs),), torch.nan)


def redness():
    return lambda outputs, prompts, **columns: outputs[:, 0].flatten(1).mean(1)


def late():
    """All 0 in the first calls, as a sparse reward may be."""
    calls = []

    def score(outputs, prompts, **columns):
        calls.append(1)
        return torch.tensor([float(len(calls) > 3 and row % 2) for row in range(len(outputs))])

    return score


def first_misses():
    """NaN for the first answer of its first call."""
    calls = []

    def score(outputs, prompts, **columns):
        calls.append(1)
        return torch.tensor([torch.nan if len(calls) == 1 and not row else 1.0 for row in range(len(outputs))])

    return score


def narrow():
    """Outputs vary half as much as real data, at every evaluation."""
    return lambda outputs, prompts: {"spread_ratio": 0.5}


def better():
    """A judge that likes each evaluation more."""
    calls = []

    def score(outputs, prompts, **columns):
        calls.append(1)
        return torch.arange(len(outputs)).float() / 100 + len(calls)

    return score


def hungry(most=4):
    """A method for whose passes of more rows there is no memory."""
    import dataclasses

    import mmalign

    method = mmalign.methods.grpo(beta=0.0)

    def loss(steps, signal):
        if len(steps.mask) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return method.loss(steps, signal)

    return dataclasses.replace(method, loss=loss)


def varying():
    calls = []

    def measure(outputs, prompts):
        calls.append(1)
        return {f"key{len(calls)}": 1.0}

    return measure


def in_the_way():
    """Somebody made a folder where the page should be."""
    import pathlib

    def score(outputs, prompts, **columns):
        pathlib.Path("runs/r/report.html").mkdir(exist_ok=True)
        return torch.arange(len(outputs)).float()

    return score


def keyed(key):
    return lambda outputs, prompts, **columns: torch.arange(len(outputs)).float()


def method():
    import mmalign

    return mmalign.methods.grpo(beta=0.0)


def stops(at=2, what="raises"):
    """Goes well until a call."""
    calls = []

    def score(outputs, prompts, **columns):
        calls.append(1)
        if len(calls) >= at and what == "raises":
            raise RuntimeError("the server is down")
        if len(calls) >= at and what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor([torch.nan if len(calls) >= at and what == "nan" else float(row) for row in range(len(outputs))])

    return score
'''


@dataclass
class User:
    """Works in ``folder``, which is the working one. commands: what was typed last."""

    folder: Path
    commands: list[str] = field(default_factory=list)

    def write(self, name: str, text: str | list[Any]) -> Path:
        """A file of text, or of JSON lines."""
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text), encoding="utf-8")
        return place

    def config(self, base: dict[str, Any], changes: dict[str, Any] | None = None, name: str = "c.yaml") -> str:
        """A config with changes by their dotted place: ``{"batch.group": 1}``; None takes a key out."""
        node = copy.deepcopy(base)
        for place, value in (changes or {}).items():
            *path, last = place.split(".")
            inner = node
            for key in path:
                inner = inner.setdefault(key, {})
            if value is None:
                inner.pop(last, None)
            else:
                inner[last] = value
        self.write(name, yaml.safe_dump(node, sort_keys=False))
        return name

    def mmalign(self, *words: str) -> str:
        """The command: all that it prints, and its exit code at the end."""
        self.commands.append("mmalign " + shlex.join(words))
        out = io.StringIO()
        before = sys.argv
        sys.argv = ["mmalign", *words]
        code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
        sys.argv = before
        return f"{out.getvalue().strip()}\nexit {code}"

    def train(self, base: dict[str, Any], changes: dict[str, Any] | None = None, *words: str) -> str:
        """``mmalign train`` of a config that is written before. Pairs are there."""
        if "records" in base and not (self.folder / "pairs.jsonl").exists():
            self.write("pairs.jsonl", PAIRS)
        config = self.config(base, changes)
        printed = self.mmalign("train", config, *words)
        self.commands[-1] += "".join(f"  # {place}: {json.dumps(value)}" for place, value in (changes or {}).items())
        return printed

    def python(self, line: str, call: Callable[[], Any]) -> str:
        """A line of Python and what it gives; of a mistake, its one line."""
        self.commands.append(line)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter("always")
            try:
                value = call()
            except UserError as error:
                return f"{out.getvalue()}UserError: {error}"
        return f"{out.getvalue()}{value}"

    def model(self, name: str = "model", *, without: Sequence[str] = (), extra: Sequence[str] = ()) -> str:
        """A folder with a small Llama that can be trained. without: tensors left out. extra: names of tensors that no Llama has."""
        shutil.copytree(resource("assets/text/small"), self.folder / name)
        place = self.folder / name / "model.safetensors"
        tensors = {key: value for key, value in load_file(str(place)).items() if key not in without}
        save_file(tensors | {key: torch.zeros(2) for key in extra}, str(place), metadata={"format": "pt"})
        return name


Try = Callable[[User], str]
FAULTS: list[tuple[int, str, str, Try]] = []
"""Kind, what failed, words that what is printed holds now, and how it is tried."""


def fault(kind: int, what: str, shows: str) -> Callable[[Try], Try]:
    """Puts a function into the list. shows: a regular expression of what is printed."""

    def put(function: Try) -> Try:
        FAULTS.append((kind, what, shows, function))
        return function

    return put


@contextlib.contextmanager
def somebody() -> Iterator[User]:
    """In a folder of their own, which is gone afterwards."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            user = User(Path(folder))
            user.write("own.py", OWN)
            yield user
        finally:
            os.chdir(here)
