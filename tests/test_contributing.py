"""The worked examples of CONTRIBUTING.md: their own examples are true, the contract takes the method, a config finds all, and all train."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import mmalign as mm
from mmalign.worlds import gaussian
from tests.helpers import small_run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / ".github" / "CONTRIBUTING.md"
FILES = dict(re.findall(r"^```\w+\n# (\w+\.(?:py|yaml))\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M))
MODULES = [name.removesuffix(".py") for name in FILES if name.endswith(".py")]


@pytest.fixture
def written(write_module, tmp_path):
    for name, text in FILES.items():
        write_module(name, text)
    write_module("prompts.txt", "a sunny field\n")
    return tmp_path


def in_a_process(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def test_the_page_has_an_example_of_each():
    assert set(FILES) == {"my_methods.py", "my_rewards.py", "my_combinations.py", "my_kernels.py", "mine.yaml"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_examples(name, written):
    module = importlib.import_module(name)
    done = doctest.testmod(module, extraglobs={"torch": torch, "mm": mm})
    assert done.attempted >= 1 and done.failed == 0


def test_the_method_passes_the_contract(written):
    path = os.pathsep.join((str(ROOT), str(written)))
    options = ("-p", "no:cacheprovider", "-k", "sign_reinforce")
    done = in_a_process("-m", "pytest", "tests/test_contract.py", *options, cwd=ROOT, MMALIGN_CONTRACT="my_methods", PYTHONPATH=path)
    assert done.returncode == 0 and "sign_reinforce" not in done.stdout, done.stdout
    assert done.stdout.count(".") > 10, "the method's tests were not found"


def test_a_config_finds_them(written):
    done = in_a_process("-m", "mmalign", "check", "mine.yaml", cwd=written, PYTHONPATH=str(ROOT))
    first, *others = done.stdout.splitlines()
    assert first == "mine.yaml: no mistakes found", done.stdout + done.stderr
    assert [name for name in MODULES if not any(f"not imported: {name}." in line for line in others)] == []
    config = (written / "mine.yaml").read_text()
    (written / "mine.yaml").write_text(config.replace("std: 0.2", "sdt: 0.2"))
    done = in_a_process("-m", "mmalign", "check", "mine.yaml", cwd=written, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and "nearest: std" in done.stdout + done.stderr


def test_they_train(written, tmp_path):
    kernel = importlib.import_module("my_kernels").constant_noise(std=0.2)
    method = importlib.import_module("my_methods").sign_reinforce()
    combine = importlib.import_module("my_combinations").product()
    world = gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5])
    policy = gaussian.GaussianPolicy(world, gaussian.flow_levels(3), kernel=kernel)
    small_run.online(tmp_path, policy=policy, method=method, combine=combine, batch={"updates": 1})
    assert len(small_run.rows(tmp_path / "run")) >= 6


def test_pre_commit_runs_what_the_test_command_runs_first():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook["entry"].removeprefix("python -m ").removesuffix(" --force-exclude") for hook in config["repos"][0]["hooks"]]
    script = (ROOT / "scripts" / "test").read_text(encoding="utf-8")
    commands = [re.sub(r" --check| \.$", "", line) for line in re.findall(r"^run (.*)$", script, re.M)]
    assert hooks == [command for command in commands if not command.startswith("pytest")]
