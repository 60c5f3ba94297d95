"""Rounds: stages that follow each other, what is kept of them, and how they go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmalign as mm
from mmalign.config import build, load
from mmalign.runs.rounds import last_run, read_entries
from mmalign.selftest.trials import contents
from mmalign.types import UserError
from tests.helpers.stages import CALLS

WRITE = "tests.helpers.stages.write"


def stages(**more: Any) -> dict[str, Any]:
    """Two stages: words of the round before and one more; and those twice."""
    return {
        "pool": {"use": WRITE, "out": "pool.json", "words": ["x"], "source": {"stage": "twice", "round": -1, "otherwise": None}, **more},
        "twice": {"use": WRITE, "out": "twice.json", "sources": [{"stage": "pool"}, {"stage": "pool"}]},
    }


def run(folder: Path, resume: bool = False, rounds: int = 3, **more: Any) -> Any:
    return mm.rounds(stages(**more), rounds=rounds, run={"folder": str(folder), "name": "run"}, resume=resume)


def words(folder: Path, number: int, name: str) -> int:
    return len(json.loads((folder / "run" / f"round_{number:03d}" / f"{name}.json").read_text()))


def test_each_round_goes_on_with_what_the_one_before_made(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert [(words(tmp_path, number, "pool"), words(tmp_path, number, "twice")) for number in (1, 2, 3)] == [(1, 2), (3, 6), (7, 14)]
    assert ended.summary["status"] == "finished" and ended.summary["steps"] == 3
    assert [(entry.round, entry.stage, entry.counts["words"]) for entry in read_entries(ended.path)] == [
        (1, "pool", 1), (1, "twice", 2), (2, "pool", 3), (2, "twice", 6), (3, "pool", 7), (3, "twice", 14),
    ]  # fmt: skip
    rows = [json.loads(line) for line in (ended.path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("pool/words"), row.get("twice/words")) for row in rows][:2] == [(1, 1, None), (1, None, 2)]
    node = yaml.safe_load((ended.path / "round_002" / "pool.yaml").read_text())
    assert node["source"] == str(tmp_path / "run" / "round_001" / "twice.json")
    assert last_run(ended.path) is None and ended.policy is None


def test_a_stage_that_refuses_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^round 2, pool: words: got 'wrong', takes others$"):
        run(tmp_path, words={"by_round": [["x"], ["wrong"]]})
    assert [entry.stage for entry in read_entries(tmp_path / "run")] == ["pool", "twice"]
    CALLS.clear()
    ended = run(tmp_path, resume=True, words={"by_round": [["x"], ["y"]]})  # what it says now is another thing, which a line says
    assert len(CALLS) == 4 and ended.summary["status"] == "finished"
    assert yaml.safe_load((ended.path / "config.yaml").read_text())["stages"]["pool"]["words"] == {"by_round": [["x"], ["y"]]}


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, rounds=1)
    CALLS.clear()
    run(tmp_path, rounds=2, resume=True)
    assert [Path(call).parent.name for call in CALLS] == ["round_002", "round_002"]
    whole = contents(tmp_path / "run")
    run(tmp_path, rounds=2, resume=True)
    assert contents(tmp_path / "run") == whole and len(CALLS) == 2
    with pytest.raises(UserError, match=r"cannot resume with another config: rounds was 2, is 1"):
        run(tmp_path, rounds=1, resume=True)
    with pytest.raises(UserError, match=r"exists: resume it"):
        run(tmp_path, rounds=2)


@pytest.mark.parametrize("resume", [False, True])
def test_killed_while_its_folder_is_made(resume: bool, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", rounds=1).path
    killed = tmp_path / "killed" / "run"
    killed.mkdir(parents=True)
    (killed / ".config.yaml.534.tmp").write_text("use:")
    run(tmp_path / "killed", rounds=1, resume=resume)
    assert {file.name for file in killed.iterdir()} == {file.name for file in whole.iterdir()}


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_killed_between_and_inside_of_stages(kept: int, tmp_path: Path) -> None:
    """What a kill leaves: a state that is one stage behind, the file of that stage, half of it, or half of a folder."""
    run(tmp_path / "whole", rounds=2)
    run(tmp_path / "killed", rounds=2)
    folder, entries = tmp_path / "killed" / "run", read_entries(tmp_path / "killed" / "run")
    (folder / "rounds.json").write_text(
        json.dumps(
            {
                "entries": [
                    entry._asdict() | {"counts": dict(entry.counts), "before": {}, "after": {}, "trained": {}} for entry in entries[:kept]
                ]
            }
        )
    )
    half = folder / f"round_{1 + kept // 2:03d}" / ".pool.json.123.tmp"
    half.write_text("[")
    (half.parent / ".merged.123.tmp").mkdir()
    (half.parent / ".merged.123.tmp" / "README.md").write_text("# ")
    (folder / "summary.json").unlink()
    for name in ("twice.json", "twice.yaml"):
        (folder / "round_002" / name).unlink()
    run(tmp_path / "killed", rounds=2, resume=True)
    whole, killed = contents(tmp_path / "whole" / "run"), contents(folder)
    assert {name for name in whole if whole[name] != killed.get(name)} <= {
        "config.yaml",
        *(f"round_00{n}/{s}.yaml" for n in (1, 2) for s in ("pool", "twice")),
    }
    assert killed.keys() == whole.keys()


def test_a_product_that_is_gone_and_a_state_that_is_damaged(tmp_path: Path) -> None:
    run(tmp_path, rounds=1)
    (tmp_path / "run" / "round_001" / "twice.json").unlink()
    with pytest.raises(UserError, match=r"^round 2, pool: .*round_001/twice\.json is gone$"):
        run(tmp_path, rounds=2, resume=True)
    (tmp_path / "run" / "rounds.json").write_text("{")
    with pytest.raises(UserError, match=r"rounds\.json: cannot be read"):
        run(tmp_path, rounds=2, resume=True)


def test_other_stages_are_another_run(tmp_path: Path) -> None:
    run(tmp_path, rounds=1)
    other = {"first": stages()["pool"] | {"source": None}, **stages(source=None)}
    other["first"]["out"] = "first.json"
    with pytest.raises(UserError, match=r"cannot resume with other stages: they were pool, twice, and are first, pool, twice"):
        mm.rounds(other, rounds=2, run={"folder": str(tmp_path), "name": "run"}, resume=True)


def test_mistakes_come_before_anything(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^stages\.pool\.source: got the stage 'twic', takes one of pool, twice; nearest: twice$"):
        run(tmp_path, source={"stage": "twic"})
    assert not (tmp_path / "run").exists()


def test_pairs_are_sampled_and_trained_on_in_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = build(load("selftest/rounds", [f"run.folder={tmp_path}"]))
    first, second = (ended.path / f"round_00{number}" / "train" for number in (1, 2))
    rows = [json.loads(line) for line in (ended.path / "metrics.jsonl").read_text().splitlines()]
    evaluated = {row["step"]: row["plain"] for row in rows if row["phase"] == "eval"}
    own = [json.loads((folder / "summary.json").read_text()) for folder in (first, second)]
    assert evaluated == {0: own[0]["plain_before"], 1: own[0]["plain_after"], 2: own[1]["plain_after"]}
    assert own[1]["plain_before"] == own[0]["plain_after"]  # the second round starts where the first one ended
    assert ended.summary["plain_before"] == evaluated[0] and ended.summary["plain_after"] == evaluated[2]
    assert last_run(ended.path) == second and ended.sample(count=1).read_text() and (ended.path / "report.html").is_file()
    assert ended.sample(count=1).is_relative_to(second)
    # killed inside of the last training: its checkpoint is there, its end and its entry are not
    entries = json.loads((ended.path / "rounds.json").read_text())["entries"]
    whole = contents(ended.path)
    (ended.path / "rounds.json").write_text(json.dumps({"entries": entries[:3]}))
    shutil.rmtree(second / "checkpoints" / "step_000003")
    (second / "summary.json").unlink()
    build(load("selftest/rounds", [f"run.folder={tmp_path}"]), resume=True)
    assert {name for name in whole if contents(ended.path).get(name) != whole[name]} == set()
