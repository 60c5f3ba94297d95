"""Configs inside of a config that are built later: what stands in the place of references, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmalign.config import check, external_code
from mmalign.config.nodes import Product
from mmalign.config.stages import Turn, config_of, turns

WRITE = "tests.helpers.stages.write"
FOLDER = Path("runs/a")


def of(stages: dict[str, Any], number: int, name: str) -> dict[str, Any]:
    errors: list[str] = []
    node = config_of(Turn(stages, FOLDER, number, name), errors)
    assert errors == []
    return node


def mistakes(**stages: Any) -> list[str]:
    return check({"use": "rounds", "rounds": 3, "stages": stages}, trust=True)


def writes(name: str = "a.json", **more: Any) -> dict[str, Any]:
    return {"use": WRITE, "out": name, **more}


def test_products_by_their_paths() -> None:
    stages = {"a": writes("a.json", source={"stage": "b", "round": -1, "otherwise": None}), "b": writes("b.json", source={"stage": "a"})}
    assert of(stages, 1, "a") == {"use": WRITE, "out": "runs/a/round_001/a.json"}
    assert of(stages, 2, "a")["source"] == "runs/a/round_001/b.json"
    assert of(stages, 2, "b")["source"] == "runs/a/round_002/a.json" and isinstance(of(stages, 2, "b")["source"], Product)


def test_products_of_a_round_by_its_number_and_of_all() -> None:
    first = {"stage": "a", "round": 1}
    every = {"stage": "b", "round": "all", "otherwise": ["none"]}
    stages = {"a": writes(words=every), "b": writes("b.json", source=first), "c": writes("c.json", sources={"stage": "b", "round": "all"})}
    assert of(stages, 3, "b")["source"] == "runs/a/round_001/a.json"
    assert of(stages, 1, "a")["words"] == ["none"] and of(stages, 2, "a")["words"] == ["runs/a/round_001/b.json"]
    assert of(stages, 2, "c")["sources"] == ["runs/a/round_001/b.json", "runs/a/round_002/b.json"]


def test_a_stage_does_not_see_what_it_makes_now() -> None:
    stages = {"a": writes(source={"stage": "a", "round": 1, "otherwise": None})}
    assert "source" not in of(stages, 1, "a") and of(stages, 2, "a")["source"] == "runs/a/round_001/a.json"


def test_values_by_round() -> None:
    stages = {"a": writes(words={"by_round": [["x"], ["y", "z"]]}), "b": writes("b.json", source={"by_round": [None, {"stage": "a"}]})}
    assert [of(stages, number, "a")["words"] for number in (1, 2, 3)] == [["x"], ["y", "z"], ["y", "z"]]
    assert of(stages, 1, "b")["source"] is None and of(stages, 2, "b")["source"] == "runs/a/round_002/a.json"


def test_what_a_file_says_under_a_key(tmp_path: Path) -> None:
    """The path of the file where it is not there yet, as nobody looks for it; then what it says, of which null is no such key."""
    stages = {"a": writes(), "b": writes("b.json", source={"stage": "a", "key": "parent"})}
    turn, errors = Turn(stages, tmp_path, 1, "b"), list[str]()
    assert isinstance(config_of(turn, [])["source"], Product)
    turn.home.mkdir()
    for said, expected in (('{"parent": "runs/x"}', {"source": "runs/x"}), ('{"parent": null}', {})):
        (turn.home / "a.json").write_text(said)
        assert config_of(turn, errors) == {"use": WRITE, "out": str(turn.home / "b.json"), **expected}
    assert errors == []
    (turn.home / "a.json").write_text("[1]")
    config_of(turn, errors)
    assert errors == [f"source: {turn.home / 'a.json'} has nothing under 'parent'; takes a key of its object of JSON"]
    assert mistakes(a=writes(), b=writes("b.json", source={"stage": "a", "key": 3})) == [
        "stages.b.source: got key 3 of round 0, takes a word, and one round"
    ]


def test_what_a_stage_does_not_say() -> None:
    stages = {"a": {"use": "make_pairs", "out": "a.jsonl"}, "b": {"use": "offline", "run": {"trackers": []}}, "c": {"use": "online"}}
    seeds = [of(stages, turn.round, turn.name) for turn in turns(stages, FOLDER, rounds=2)]
    assert [node.get("seed", node.get("run", {}).get("seed")) for node in seeds] == [0, 1, 2, 1000, 1001, 1002]
    assert of(stages, 2, "b")["run"] == {"name": "b", "seed": 1001, "trackers": [], "folder": "runs/a/round_002"}
    stages["b"]["run"] = {"name": "other", "seed": 7}
    assert of(stages, 2, "b")["run"] == {"name": "other", "seed": 7, "folder": "runs/a/round_002"}
    stages["c"]["policy"] = {"start": {"stage": "b"}}
    assert of(stages, 2, "c")["policy"] == {"start": "runs/a/round_002/other"}


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ({"a": writes(source={"stage": "c"})}, "stages.a.source: got the stage 'c', takes one of a"),
        ({"a": writes(source={"stage": {"use": "."}})}, "stages.a.source: got the stage {'use': '.'}, takes one of a"),
        ({"a": writes(source={"stage": ["a"]})}, "stages.a.source: got the stage ['a'], takes one of a"),
        ({"a": writes(source={"stage": "a"})}, "stages.a.source: a does not come before a in a round; takes round: -1, or another order"),
        ({"a": writes(source={"stage": "b"}), "b": writes("b", source={"stage": "a"})}, "stages.a.source: b does not come before a"),
        ({"a": writes(source={"stage": "a", "round": -1})}, "stages.a.source: a of round 0 is not made by round 1; takes otherwise: VALUE"),
        ({"a": writes(source={"stage": "a", "round": 2, "otherwise": None})}, ""),
        ({"a": writes(source={"stage": "a", "round": 2})}, "stages.a.source: a of round 2 is not made by round 1"),
        ({"a": writes(source={"stage": "a", "round": "last"})}, "stages.a.source: got round 'last', takes 0 (this one), -1 (the one"),
        ({"a": writes(source={"stage": "a", "rounds": 1})}, "stages.a.source: unknown key rounds beside stage; takes stage, round"),
        ({"a": {"use": WRITE}}, "stages.a.out: missing, tests.helpers.stages.write needs it"),
        ({"a": {"use": WRITE}, "b": writes("b", source={"stage": "a"})}, "stages.b.source: a makes no file and no run (no out)"),
        ({"a": writes("x"), "b": writes("x")}, "stages.b: makes x, as a does; takes another out"),
        ({"a": writes("../x")}, "stages.a.out: got '../x', takes the name of a file"),
        ({"a": {"use": "offline", "run": {"folder": "x"}}}, "stages.a.run.folder: got 'x'; takes none"),
        ({"a": {"use": "rounds"}}, "stages.a.use: got rounds inside of rounds"),
        ({"a": {"out": "x"}}, "stages.a.use: missing, takes the name of a recipe or a command"),
        ({"a": writes(words={"by_round": []})}, "stages.a.words.by_round: got [], takes a list: a value for each round"),
        ({"a": writes(words={"by_round": [["a"], "b"]})}, "stages.a.words: got 'b', takes list"),
        ({"a": {"use": "make_pair", "out": "x"}}, "stages.a.use: got 'make_pair', there is none in recipes or commands; nearest: make_p"),
        ({}, "stages: got none, takes {NAME: {use: a recipe or a command, ...}}"),
    ],
)  # fmt: skip
def test_mistakes_are_lines(stages: dict[str, Any], line: str) -> None:
    lines = mistakes(**stages)
    assert (lines == []) if not line else any(said.startswith(line) for said in lines), lines


def test_each_stage_is_checked_as_a_config() -> None:
    offline = {
        "use": "offline", "method": {"use": "dpo", "bta": 0.1}, "steps": 1,
        "policy": {"use": "transformers", "model": {"use": "text"}, "start": {"stage": "train", "round": -1, "otherwise": None}},
        "records": {"use": "texts", "path": {"stage": "sample"}},
    }  # fmt: skip
    lines = mistakes(sample=writes("pairs.jsonl"), train=offline)
    assert len(lines) == 1 and lines[0].startswith("stages.train.method.bta: unknown key of dpo; nearest: beta")
    offline["method"] = {"use": "grpo"}
    offline["policy"]["modle"] = "x"
    lines = mistakes(sample=writes("pairs.jsonl"), train=offline)
    assert any(line.startswith("stages.train.policy.modle: unknown key") for line in lines)


def test_code_from_outside_is_listed() -> None:
    names = external_code({"use": "rounds", "rounds": 1, "stages": {"a": writes()}})
    assert [(name.key, name.name) for name in names] == [("stages.a.use", WRITE)]


def test_what_is_no_list_of_stages() -> None:
    assert check({"use": "rounds", "rounds": 0, "stages": {"a": writes()}}, trust=True) == ["rounds: got 0, takes 1 or more"]
    assert check({"use": "rounds", "rounds": 1, "stages": [writes()]}, trust=True)[0].startswith("stages: got [")
