"""The built wheel, installed into an empty folder and used from another one, where no file of the checkout is found."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil, sys
import mmalign as mm
assert mm.__file__.startswith(sys.argv[1]), mm.__file__
for module in pkgutil.walk_packages(mm.__path__, "mmalign."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for room in mm.ROOMS:
    assert set(mm.rooms.index(f"mmalign.{room}")) <= set(dir(getattr(mm, room))), room
print(mm.__version__)
"""


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    if find_spec("hatchling") is None or find_spec("pip") is None:
        pytest.skip("takes pip and hatchling, as scripts/environment.sh installs them")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel's files and its command; what mmalign depends on is the tests' own."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", "--no-warn-script-location", "--target", folder, wheel)
    return folder


@pytest.fixture
def use(installed, tmp_path):
    """Runs a command of the installed wheel from an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "120"}
    return lambda *command: run(*command, cwd=tmp_path, env=environment)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "mmalign", "configs", "assets"], capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    there = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    wanted = {name if name.startswith("mmalign/") else f"mmalign/{name}" for name in there}
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert wanted - held == set()
    assert {name for name in held - wanted if "__pycache__" in name or name.endswith(".pyc")} == set()


def test_every_file_can_be_imported(use, installed):
    from mmalign import __version__

    assert use(sys.executable, "-c", IMPORT_ALL, installed).strip() == __version__


def test_the_command_finds_what_comes_with_it(use, installed):
    command = installed / "bin" / "mmalign"
    assert "train" in use(command, "--help")
    assert use(command, "check", "digits/demo").strip() == "digits/demo: no mistakes found"
    assert "flow_grpo" in use(command, "list", "methods") and "digits/demo" in use(command, "list", "configs")
