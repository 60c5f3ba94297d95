"""Does mmalign work here? What it stands on, where it may write, and a small run of every recipe, alone and in two processes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mmalign.distributed import forked
from mmalign.runs.folder import versions
from mmalign.selftest.trials import Trial, trials, warm

TIMEOUT = 300.0
"""Seconds that a small run, or a GPU, may take."""


class Finding(NamedTuple):
    """What was looked at, and what came of it. fine: None where something is missing that not everybody needs."""

    name: str
    fine: bool | None
    what: str


def installation(root: Path) -> Iterator[Finding]:
    """One after another, as they come. root: an empty folder."""
    packages = versions()
    shown = [f"{name} {packages[name]}" for name in ("python", "mmalign", "torch") if packages[name]]
    yield Finding("packages", True, ", ".join(shown))
    missing = [name for name, version in packages.items() if version is None and not name.startswith("git")]
    if missing:
        yield Finding("packages", None, f"not installed: {', '.join(missing)}")
    yield from _extras()
    yield _devices(root)
    yield _writing(root)
    some = trials()
    with warm(some, root):
        for trial in some:
            yield _trained(trial, root, processes=trial.least)
        yield _trained(some[0], root, processes=2)


def _extras() -> Iterator[Finding]:
    """What the project's extras need and is not here."""
    try:
        requirements = metadata.requires("mmalign") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return
    lacking: dict[str, list[str]] = {}
    for line in requirements:
        extra, package = re.search(r"""extra\s*==\s*["'](\w+)["']""", line), re.match(r"[\w.-]+", line)
        if extra is not None and package is not None and extra[1] != "dev" and not _installed(package[0]):
            lacking.setdefault(extra[1], []).append(package[0])
    for name, packages in sorted(lacking.items()):
        yield Finding(f"extra {name}", None, f"not installed: {', '.join(packages)} (pip install mmalign[{name}])")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _devices(root: Path) -> Finding:
    """GPUs are tried in a process of its own: one that has begun to use them cannot be forked."""
    folder = root / "devices"
    codes = forked.wait(forked.fork(1, partial(_tried_devices, folder), folder, quiet=True), patience=TIMEOUT)
    lines = forked.words(folder, 1)[0].strip().splitlines()
    if codes != [0]:
        return Finding("devices", False, lines[-1] if lines else f"the process that tried them ended with {codes[0]}")
    return Finding("devices", True, (folder / "found.txt").read_text(encoding="utf-8"))


def _tried_devices(folder: Path, rank: int) -> None:
    import torch

    from mmalign.types import UserError

    names = ["cpu"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        here = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        there = here.to(f"cuda:{number}")
        if not torch.allclose((there @ there).cpu(), here @ here):
            raise UserError(f"cuda:{number} ({properties.name}) multiplies matrices otherwise than the CPU")
        names.append(f"cuda:{number} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    (folder / "found.txt").write_text("; ".join(names), encoding="utf-8")


def _writing(root: Path) -> Finding:
    """What a run asks of a file system: a lock that is held once, files that are flushed and renamed."""
    from filelock import FileLock, Timeout

    from mmalign.files import write_text

    path = root / "writing"
    try:
        write_text(path / "whole.txt", "whole")
        os.replace(path, root / "renamed")
        first, second = (FileLock(root / "renamed" / ".lock", timeout=0, is_singleton=False) for _ in range(2))
        with first:
            try:
                with second:
                    return Finding("folder", False, f"{root}: a lock can be taken twice, so that two runs might meet; takes another folder")
            except Timeout:
                return Finding("folder", True, f"{root.parent}: locks, flushes and renames")
    except OSError as error:
        return Finding("folder", False, f"{root.parent}: {error}")


def _trained(trial: Trial, root: Path, *, processes: int) -> Finding:
    """A small run from its start to its page, half of it resumed."""
    folder, began = root / f"{trial.name}-{processes}", time.monotonic()
    for resume in (False, True):
        act = partial(_half, trial, folder, resume)
        codes = forked.wait(forked.fork(processes, act, folder, timeout=TIMEOUT, quiet=True), patience=TIMEOUT)
        if any(codes):
            lines = [text.strip().splitlines()[-1] for text in forked.words(folder, processes) if text.strip()]
            return Finding(_called(trial, processes), False, "; ".join(lines) or f"ended with {codes}")
    if not (folder / "run" / "report.html").is_file():
        return Finding(_called(trial, processes), False, "trained, and its report could not be made")
    return Finding(_called(trial, processes), True, f"trained, resumed, reported in {time.monotonic() - began:.1f} s")


def _half(trial: Trial, folder: Path, resume: bool, rank: int) -> None:
    trial.train(folder, resume=resume, steps=None if resume else 2)


def _called(trial: Trial, processes: int) -> str:
    return trial.name if processes == 1 else f"{trial.name}, {processes} processes"
