from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_kind_of_process() -> Iterator[None]:
    """Signals end a process as they do by default, also where whoever started this ignores some (``nohup``); and files of tests, which
    no loss of power has to leave whole, are not waited for until they are on the disk."""
    numbers = [signal.SIGTERM] + ([signal.SIGHUP] if sys.platform != "win32" else [])
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """What a test reads of the environment, or puts there, is forgotten with it: a secret that one test's config named is masked under
    that name for the rest of the process, and tests meet in one process in any order."""
    from mmalign.arguments import environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_WRITTEN", {})
        before = dict(os.environ)
        yield
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Writes modules of a user's own, ``write("house/rooms/jpeg.py", text)``, importable while the test runs."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(path: str, text: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


class Done(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


@pytest.fixture
def mmalign(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process, because a process of its own imports torch each time."""
    from mmalign import cli

    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["mmalign", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code or 0
        assert isinstance(code, int), code
        return Done(code, *capsys.readouterr())

    return run
