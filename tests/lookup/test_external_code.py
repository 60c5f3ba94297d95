"""A config is code: what it names outside of mmalign is listed, and neither imported nor called before somebody said so."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmalign.config import build, check, external_code, load
from mmalign.lookup import catalogue
from mmalign.lookup.external_code import is_offered, source_file, source_signature
from mmalign.types import UserError

ROOT = Path(__file__).parents[2]
DEMO = load(catalogue.configs()["digits/demo"])

LOUD = """
from pathlib import Path

Path(__file__).with_name("imported").touch()


def called(*, want="bright", scale, **more):
    "What it is."
    Path(__file__).with_name("called").touch()


class Thing:
    def __init__(self, size, *, from_=None):
        Path(__file__).with_name("called").touch()

    @classmethod
    def made(cls, **anything):
        Path(__file__).with_name("called").touch()


def exact(first, second=2, *, third=3):
    Path(__file__).with_name("called").touch()
"""
PLACES = {
    "whole": lambda node: node,
    "policy": lambda node: {**DEMO, "policy": node},
    "pipeline": lambda node: {**DEMO, "policy": {**DEMO["policy"], "pipeline": node}},
    "kernel": lambda node: {**DEMO, "policy": {**DEMO["policy"], "schedule": {"kernel": node}}},
    "inside of a kernel": lambda node: {**DEMO, "policy": {**DEMO["policy"], "schedule": {"kernel": {"use": "ddim", "eta": node}}}},
    "conditions": lambda node: {**DEMO, "policy": {**DEMO["policy"], "conditions": node}},
    "method": lambda node: {**DEMO, "method": node},
    "inside of a method": lambda node: {**DEMO, "method": {"use": "grpo", "clip": node}},
    "prompts": lambda node: {**DEMO, "prompts": node},
    "a reward": lambda node: {**DEMO, "rewards": {"mine": node}},
    "combine": lambda node: {**DEMO, "combine": node},
    "a metric": lambda node: {**DEMO, "evaluation": {"metrics": {"mine": node}}},
    "optimizer": lambda node: {**DEMO, "optimizer": node},
    "an unknown key": lambda node: {**DEMO, "odd": [{"deep": node}]},
    "without a recipe": lambda node: {"policy": node},
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_outside_is_imported_or_called(place: str, write_module: Callable[[str, str], Path], tmp_path: Path) -> None:
    write_module("loud_one.py", LOUD)
    for name in ("loud_one.called", "loud_one.Thing.made", "loud_one.nothing_of_the_kind"):
        node = PLACES[place]({"use": name, "scale": 1})
        check(copy.deepcopy(node))
        assert [one.name for one in external_code(node)] == [name]
    assert not (tmp_path / "imported").exists() and not (tmp_path / "called").exists()
    check(PLACES["method"]({"use": "loud_one.called", "scale": 1}), trust=True)
    assert (tmp_path / "imported").exists() and (tmp_path / "called").exists()  # the test would have seen it


@pytest.mark.parametrize("place", PLACES)
def test_a_command_of_the_system_is_not_run(place: str, tmp_path: Path) -> None:
    node = PLACES[place]({"use": "os.system", "command": f"touch {tmp_path / 'ran'}"})
    check(node)
    assert [one.name for one in external_code(node)] == ["os.system"] and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["mmalign.files.write_text", "files.write_text", "rooms.importlib.import_module", "commands.export.export"]
)
@pytest.mark.parametrize("place", ["policy", "method", "prompts", "a metric"])
def test_helpers_of_mmalign_are_no_names_of_rooms(place: str, name: str, tmp_path: Path) -> None:
    """What a room does not offer may write files, or import: it counts as outside, and a check does not call it."""
    node = PLACES[place]({"use": name, "path": str(tmp_path / "ran"), "text": "x"})
    check(node)
    assert [one.name for one in external_code(node)] == [name] and not (tmp_path / "ran").exists()


def test_a_check_builds_methods_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from mmalign.worlds import gaussian

    monkeypatch.setattr(gaussian, "one_gaussian", lambda mean, variance: calls.append("called"))
    node = {**DEMO, "method": {"use": "worlds.gaussian.one_gaussian", "mean": [0.0], "variance": [1.0]}}
    gaussian.one_gaussian.__module__ = "mmalign.worlds.gaussian"
    assert check(node) == ["method.use: got 'worlds.gaussian.one_gaussian', which is none of the methods"] and calls == []
    inside = {**DEMO, "method": {"use": "grpo", "clip": {"use": "worlds.gaussian.one_gaussian", "mean": [0.0], "variance": [1.0]}}}
    assert check(inside) == ["method.clip: got a node, takes float"] and calls == []


def test_what_rooms_offer_is_ours() -> None:
    assert is_offered("data.edits.source_images") and is_offered("mmalign.worlds.digits.judges.digits_proxy") and is_offered("rewards.jpeg")
    assert is_offered("mmalign.recipes.online.online", whole=True) and not is_offered("mmalign.recipes.online.online")
    assert (
        not is_offered("worlds.digits.base.Path")
        and not is_offered("torch.load")
        and not is_offered("mmalign.rewards.pictures.jpeg.torch.load")
    )
    assert all(external_code(load(path)) == [] for path in catalogue.configs().values())


def test_code_that_comes_with_a_model_is_outside() -> None:
    node = {**DEMO, "policy": {"use": "transformers", "model": "some/model", "trust_remote_code": True}}
    assert [one.key for one in external_code(node)] == ["policy.trust_remote_code"]
    node["policy"]["trust_remote_code"] = False
    assert external_code(node) == []


def test_keywords_are_read_from_the_source(write_module: Callable[[str, str], Path]) -> None:
    write_module("loud_two.py", LOUD)

    def mistakes(**node: Any) -> list[str]:
        return check({**DEMO, "rewards": {"mine": node}, "combine": {"use": "weighted_sum"}})

    assert mistakes(use="loud_two.exact", first=1, thrid=2) == [
        "rewards.mine.thrid: unknown key of loud_two.exact; nearest: third; takes first, second, third"
    ]
    (line,) = mistakes(use="loud_two.exact")
    assert line.startswith("rewards.mine.first: missing, loud_two.exact needs it; ")
    assert mistakes(use="loud_two.Thing", size=1, **{"from": "x"}) == []
    assert mistakes(use="loud_two.Thing", sise=1)[0].startswith("rewards.mine.sise: unknown key of loud_two.Thing; nearest: size")
    assert mistakes(use="loud_two.Thing.made", whatever=1) == []  # a decorator may take anything
    assert mistakes(use="no_such_module.f")[0].startswith("rewards.mine.use: no_such_module.f: no module called 'no_such_module'")


def test_a_module_in_a_package_is_found_without_importing_the_package(write_module: Callable[[str, str], Path], tmp_path: Path) -> None:
    write_module("house_of/__init__.py", "raise RuntimeError('imported')\n")
    write_module("house_of/rooms/one.py", LOUD)
    file, rest = source_file("house_of.rooms.one.exact")
    assert (file, rest) == (tmp_path / "house_of" / "rooms" / "one.py", ["exact"])
    signature = source_signature("house_of.rooms.one.exact")
    assert signature is not None and signature.keywords == {"first": True, "second": False, "third": False} and not signature.any_key
    assert source_file("no_such_module_at.all") == (None, ["no_such_module_at", "all"])
    assert "house_of" not in sys.modules


def test_a_path_inside_of_mmalign_needs_no_name_of_it_before(write_module: Callable[[str, str], Path], tmp_path: Path) -> None:
    """As `build` reads it; a folder of one's own that is called like one of ours is found behind it."""

    def mistakes(model: Any) -> list[str]:
        return check({**DEMO, "policy": {**DEMO["policy"], "pipeline": model}})

    for world in ("text", "digits", "moving_digits"):
        assert mistakes({"use": f"worlds.{world}.base.train_base", "iterations": 1}) == []
    assert source_file("worlds.text.base.train_base") == source_file("mmalign.worlds.text.base.train_base")
    assert mistakes({"use": "worlds.text.base.train_base", "iteration": 1})[0].startswith(
        "policy.pipeline.iteration: unknown key of worlds.text.base.train_base; nearest: iterations"
    )
    assert mistakes({"use": "worlds.text.base.train_bass"})[0].startswith(
        "policy.pipeline.use: worlds.text.base.train_bass: mmalign has nothing there, and no module called 'worlds'"
    )
    write_module("worlds/__init__.py", "")
    write_module("worlds/mine.py", LOUD)
    assert source_file("worlds.mine.exact") == (tmp_path / "worlds" / "mine.py", ["exact"])
    assert mistakes({"use": "worlds.mine.exact", "first": 1}) == []


# ---- the commands


RUN = {**DEMO, "policy": {**DEMO["policy"], "pipeline": {"use": "loud_three.called", "scale": 1}}, "run": {"name": "theirs"}}


@pytest.fixture
def theirs(write_module: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, and a config, that name code outside of mmalign."""
    write_module("loud_three.py", LOUD)
    write_module("runs/theirs/config.yaml", yaml.safe_dump(RUN))
    write_module("theirs.yaml", yaml.safe_dump(RUN))
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = [
    ["sample", "theirs"],
    ["sample", "theirs", "--guidance", "dps"],
    ["sample", "theirs.yaml", "--guidance", "dps"],
    ["export", "runs/theirs"],
    ["compare", "theirs", "--guidance", "dps"],
    ["compare", "theirs.yaml", "--guidance", "dps"],
    ["eval", "theirs"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_run_that_names_outside_code_asks_for_trust(theirs: Path, mmalign: Callable[..., Any], words: list[str]) -> None:
    done = mmalign(*words)
    assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1
    assert "its config names code outside of mmalign" in done.err and "loud_three.called (policy.pipeline.use)" in done.err
    assert "--trust" in done.err and not (theirs / "imported").exists()
    done = mmalign(*words, "--trust")
    assert "takes --trust" not in done.err and done.code != 0  # no checkpoint there, or no pipeline: further on than before


def test_a_reward_of_ones_own_asks_for_no_trust_where_it_is_not_built(theirs: Path, mmalign: Callable[..., Any]) -> None:
    node = {**DEMO, "rewards": {"mine": {"use": "loud_three.exact", "first": 1}}, "combine": None, "run": {"name": "theirs"}}
    (theirs / "runs" / "theirs" / "config.yaml").write_text(yaml.safe_dump(node))
    for words in (["sample", "theirs"], ["export", "theirs"]):
        done = mmalign(*words)
        assert done.code == 2 and "theirs: no checkpoint there" in done.err, done.err  # so far it went
    for words in (["sample", "theirs", "--guidance", "dps"], ["eval", "theirs"], ["compare", "theirs", "--guidance", "dps"]):
        assert "loud_three.exact (rewards.mine.use)" in mmalign(*words).err
    node = {**node, "prompts": {"use": "loud_three.exact", "first": 1}, "evaluation": {"judges": {"a": {"use": "loud_three.exact"}}}}
    (theirs / "runs" / "theirs" / "config.yaml").write_text(yaml.safe_dump(node))
    assert "outside of mmalign, which would be imported and run: loud_three.exact (prompts.use); takes" in mmalign("sample", "theirs").err
    assert "no checkpoint there" in mmalign("sample", "theirs", "--prompt", "a").err
    assert not (theirs / "imported").exists()


def test_check_lists_and_train_says_what_it_imports(theirs: Path, mmalign: Callable[..., Any]) -> None:
    done = mmalign("check", "theirs.yaml")
    assert done.code == 0 and not (theirs / "imported").exists()
    assert f"outside of mmalign, not imported: loud_three.called (policy.pipeline.use), in {theirs / 'loud_three.py'}" in done.out
    done = mmalign("explain", "loud_three.exact")
    assert done.code == 0 and "exact(first, second=2, *, third=3)" in done.out and not (theirs / "imported").exists()
    done = mmalign("train", "theirs.yaml", "run.name=another")  # a run that is there is refused before anything is imported
    first = done.err.splitlines()[0]
    assert first == "theirs.yaml: imports code from outside of mmalign: loud_three.called (policy.pipeline.use)"
    assert (theirs / "imported").exists()


def test_explain_of_what_has_no_source_is_one_line(mmalign: Callable[..., Any]) -> None:
    for name in ("os.system", "no_such_module.f", "a..b", "."):
        done = mmalign("explain", name)
        assert (done.code, done.out) == (2, "") and done.err.startswith(name) and done.err.count("\n") == 1


def test_a_file_of_the_working_folder_hides_no_library(tmp_path: Path) -> None:
    for name in ("omegaconf", "rich", "typer", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} of the working folder')\n")
    (tmp_path / "mine.py").write_text("def reward(*, scale=1.0): ...\n")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**DEMO, "rewards": {"a": {"use": "mine.reward", "scael": 1}}}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "mmalign", "check", "c.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("rewards.a.scael: unknown key of mine.reward; nearest: scale")


def test_build_is_trust(write_module: Callable[[str, str], Path]) -> None:
    write_module("loud_four.py", LOUD + "\n\ndef whole(*, size: int = 1):\n    return size\n")
    assert build({"use": "loud_four.whole", "size": 3}) == 3
    with pytest.raises(UserError, match="size: got 'x', takes int"):
        build({"use": "loud_four.whole", "size": "x"})


@pytest.mark.parametrize("filled", ["", "from os.path import *", "def __getattr__(name):\n    return max", "globals().update(scor=max)"])
def test_a_name_that_a_module_does_not_bind_is_a_mistake(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found without running it; a module that fills itself may have any name."""
    code = f"import scorers_of_mine.compiled as other\n{filled}\nscore = made = max\nraise SystemExit\n"
    (tmp_path / "own_scores.py").write_text(code)
    (tmp_path / "package_of_scores").mkdir()
    (tmp_path / "package_of_scores" / "__init__.py").write_text("")
    (tmp_path / "package_of_scores" / "built.so").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    named = lambda path: [line for line in check(PLACES["a reward"]({"use": path})) if line.startswith("rewards.")]  # noqa: E731
    wrong = ["rewards.mine.use: own_scores.scor: own_scores.py has no 'scor'; nearest: score"]
    for name, mistakes in {"score": [], "made": [], "other": [], "scor": [] if filled else wrong}.items():
        assert named(f"own_scores.{name}") == mistakes
    assert named("package_of_scores.built.score") == []
    assert named("package_of_scores.none.score") == ["rewards.mine.use: package_of_scores.none.score: __init__.py has no 'none'"]
