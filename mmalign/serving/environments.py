"""Environments of packages for rewards that cannot live beside each other: made once, named by what is in them.

An environment has what its requirements name, and behind it all that this one has: torch and mmalign are not installed again, and where
both have a package, its own is imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from mmalign.files import digest
from mmalign.types import UserError

INSIDE = "MMALIGN_ENVIRONMENT"
"""The variable of a process that runs in an environment: which."""
WHOLE = "whole"  # the file that an environment has once everything is in it
SHOWN = 5  # of pip's last lines, where it fails


def environments_folder() -> Path:
    """Where environments are: ``MMALIGN_ENVIRONMENTS``, or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MMALIGN_ENVIRONMENTS") or Path(cache) / "mmalign" / "environments")


def environment(requirements: str | Path, say: Callable[[str], None]) -> Path:
    """The folder of the environment that a requirements file describes, made where it is not there yet.

    requirements: a file of pip's; what it names by relative paths is beside it. say: told what is going on.

    Its name is a hash of the file, of the files and folders that its lines name, and of this Python. Of processes that want the same one
    makes it. Errors: UserError for no such file, and what pip says last where it fails.
    """
    from filelock import FileLock

    file = Path(requirements).resolve()
    if not file.is_file():
        raise UserError(f"requirements: no such file: {requirements}")
    place = environments_folder() / name_of(file)
    if (place / WHOLE).is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if (place / WHOLE).is_file():
            return place
        shutil.rmtree(place, ignore_errors=True)  # one that was begun, and not ended
        say(f"{file}: making its environment, {place}")
        _make(place)
        _install(place, file, say)
        (place / WHOLE).write_text(f"{file}\n", encoding="utf-8")
        say(f"{file}: its environment is there")
    return place


def python_of(place: Path) -> str:
    """The interpreter of an environment."""
    return str(place / ("Scripts" if os.name == "nt" else "bin") / ("python.exe" if os.name == "nt" else "python"))


def name_of(file: Path) -> str:
    """What an environment is called."""
    parts = [file.read_bytes(), digest(_named(file)).encode(), sys.version.encode(), sys.prefix.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _named(file: Path) -> Iterator[Path]:
    """The files beside a requirements file that its lines name, and those in folders that they name."""
    for word in file.read_text(encoding="utf-8").split():
        path = file.parent / word.partition("=")[2] if word.startswith("--") and "=" in word else file.parent / word
        if path.is_file():
            yield path
        elif path.is_dir() and word not in (".", "/"):
            yield from sorted(one for one in path.rglob("*") if one.is_file())


def _make(place: Path) -> None:
    venv.create(place, with_pip=False)
    own = sysconfig.get_path("purelib", "venv", vars={"base": str(place), "platbase": str(place)})
    behind = [*dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])]
    lines = [f"import site; site.addsitedir({folder!r})" for folder in behind]  # with the .pth files in there: mmalign may be a checkout
    Path(own, "_behind.pth").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _install(place: Path, file: Path, say: Callable[[str], None]) -> None:
    if find_spec("pip") is None:
        raise UserError(f"requirements: this Python ({sys.executable}) has no pip to install {file} with; takes one that has (ensurepip)")
    command = [sys.executable, "-m", "pip", "--python", python_of(place), "install", "--disable-pip-version-check", "--no-input"]
    with subprocess.Popen(
        [*command, "-r", str(file)], cwd=file.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        lines = []
        for line in pip.stdout or ():
            if line.strip() and not line.startswith("Requirement already satisfied"):
                lines.append(line.strip())
                say(f"pip: {line.strip()[:140]}")
    if pip.returncode != 0:
        shutil.rmtree(place, ignore_errors=True)
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise UserError(f"requirements: pip cannot install {file}: {' '.join(' '.join(errors[-SHOWN:]).split())[:400]}")
