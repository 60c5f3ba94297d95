"""Columns that a config reads and its prompts lack are a line of `check`, and every reward says which it reads."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.arguments import signatures
from mmalign.arguments.reads import columns_named, columns_read, needed
from mmalign.commands.calibrate import calibrate
from mmalign.commands.make_pairs import make_pairs
from mmalign.config import check
from mmalign.lookup import catalogue
from mmalign.rewards.judges import judge_edit as edits
from mmalign.types import UserError
from tests.helpers.small_run import policy

SERVER = {"url": "http://localhost:1/v1", "model": "m"}
MAKERS = [named for kind in ("rewards", "oracles", "metrics") for named in catalogue.everything(kind)]
MINIMAL: dict[str, dict[str, Any]] = {
    "judge_against": {"server": SERVER}, "judge_edit": {"server": SERVER}, "judge_edit_pairs": {"server": SERVER},
    "judge_rubric": {"server": SERVER}, "testbench": {"commands": [["true"]], "file": "a", "bench": "b"},
    "by_task": {"rewards": {"a": lambda outputs, prompts: [0.0 for _ in outputs]}},
}  # fmt: skip
WEIGHTY = ("entailment", "object_counts", "relevance", "subject_similarity")  # which load a model when they are made


def config(folder: Path, prompts: Any, **changes: Any) -> dict[str, Any]:
    (folder / "p.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "answr": "2", "id": 7}) + "\n", encoding="utf-8")
    own = {"use": "prompts", "path": str(folder / "p.jsonl")} if prompts == "file" else prompts
    node = {"use": "online", "policy": {"use": "transformers", "model": {"use": "text"}}, "method": {"use": "grpo"}, "prompts": own}
    return {**node, "rewards": {"plain": {"use": "text_plain"}}, **changes}


ANSWER = {"use": "math_answer"}
TWICE = {"use": "time_limit", "reward": {"use": "time_limit", "reward": ANSWER}}
RUBRIC = {"use": "judge_rubric", "server": SERVER}
HAS = "reads the column 'answer' of the prompts; they have answr, id; nearest: answr"
SOURCE = "oracle: reads the column 'source' of the prompts; they have answr, id"
RUBRICS = "rewards.a: reads the column 'rubric' of the prompts; they have answr, id"
NONE = "reads the column 'answer' of the prompts; they have none"


@pytest.mark.parametrize(
    ("prompts", "changes", "line"),
    [
        ("file", {"rewards": {"a": ANSWER}}, f"rewards.a: {HAS}"),
        ("file", {"rewards": {"a": {"use": "exact_match", "column": "answr"}}}, None),
        ("file", {"rewards": {"a": {"use": "by_segment", "reward": ANSWER}}}, f"rewards.a.reward: {HAS}"),
        ("file", {"rewards": {"a": TWICE}}, f"rewards.a.reward.reward: {HAS}"),
        ("file", {"rewards": {"a": {"use": "combined", "rewards": {"b": ANSWER}}}}, f"rewards.a.rewards.b: {HAS}"),
        ("file", {"evaluation": {"judges": {"j": ANSWER}}}, f"evaluation.judges.j: {HAS}"),
        ("file", {"evaluation": {"judges": {"j": ANSWER}, "prompts": ["a", "b"]}}, f"evaluation.judges.j: {NONE}"),
        ({"use": "text_prompts"}, {"rewards": {"a": ANSWER}}, f"rewards.a: {NONE}"),
        (["one", "two"], {"rewards": {"a": ANSWER}}, f"rewards.a: {NONE}"),
        ("file", {"rewards": {"a": RUBRIC}}, RUBRICS),
        ("file", {"rewards": {"a": {**RUBRIC, "criteria": {"short": "it is short"}}}}, None),
        ("file", {"oracle": {"use": "judge_edit_pairs", "server": SERVER}}, SOURCE),
        ("file", {"oracle": {"use": "judge_pairs", "server": SERVER}}, None),
    ],
)
def test_a_column_that_the_prompts_lack_is_a_line(tmp_path: Path, prompts: Any, changes: dict[str, Any], line: str | None) -> None:
    assert check(config(tmp_path, prompts, **changes)) == ([] if line is None else [line])


def test_a_function_of_ones_own_reads_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "columns_of_mine.py").write_text(
        "def near(outputs, prompts, wanted, scale=1.0):\n    return [0.0 for _ in outputs]\n\n"
        "def metric(outputs, prompts, **columns):\n    return {'n': len(outputs)}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    node = config(tmp_path, "file", rewards={"mine": "columns_of_mine.near"}, evaluation={"metrics": {"m": "columns_of_mine.metric"}})
    line = "rewards.mine: reads the column 'wanted' of the prompts; they have answr, id"
    assert check(node) == [line] and check(node, trust=True) == [line]  # from its source, and imported


def test_offline_judges_are_held_against_the_prompts_of_the_evaluation(tmp_path: Path) -> None:
    evaluation = {"prompts": ["a"], "judges": {"j": ANSWER}}
    node = {**config(tmp_path, "file", evaluation=evaluation), "use": "offline", "method": {"use": "dpo"}, "records": {"use": "text_pairs"}}
    del node["prompts"]
    assert check(node) == [f"evaluation.judges.j: {NONE}"]


def test_a_file_that_nobody_reads_columns_of_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = config(tmp_path, "file")
    (tmp_path / "p.jsonl").write_text("no rows", encoding="utf-8")
    assert check(node) == []


@pytest.mark.parametrize("named", MAKERS, ids=lambda named: named.name)
def test_what_reads_a_column_says_so_before_and_after_it_is_made(named: catalogue.Listing) -> None:
    """The two declarations are one: the annotation, which `check` reads, and ``reads``, which a run reads."""
    factory = catalogue.function(named)
    names = [name for name in inspect.signature(factory).parameters if name.startswith("column")]
    assert all(signatures.parameters(factory)[0][name].of_prompts is not None for name in names)
    if names and named.name not in WEIGHTY:
        keywords = MINIMAL.get(named.name, {})
        for more in ({}, {"column": "mine"}):
            made = factory(**keywords, **more)
            assert columns_read(made) == set(columns_named(factory, {**keywords, **more})) != set()


def test_a_reader_in_the_source_says_that_it_reads() -> None:
    """Whoever looks into the columns has a keyword that names one: no reward reads a column that nobody could know of."""
    for named in MAKERS:
        source = inspect.getsource(inspect.unwrap(catalogue.function(named)))
        reading = any(word in source for word in ("column_of(", "= answers(", "against_answers(", '= pictures("', 'columns["'))
        assert not reading or "column" in inspect.signature(catalogue.function(named)).parameters, named.name


def test_wrappers_read_what_they_wrap() -> None:
    def plain(outputs: Any, prompts: Any, wanted: Any) -> torch.Tensor:
        return torch.tensor([float(value) for value in wanted])

    wrapped = [
        mm.rewards.time_limit(plain), mm.rewards.by_segment(plain, unit="word"), mm.rewards.combined(rewards={"a": plain}),
        mm.rewards.frames(stride=1, of=plain),
    ]  # fmt: skip
    assert [columns_read(one) for one in wrapped] == [{"wanted"}] * 4 and needed(plain) == ["wanted"]
    assert wrapped[1](["a b", "c"], ["p", "q"], wanted=[1, 2], other=[5, 6]) == [[(0, 1, 1.0), (2, 3, 1.0)], [(0, 1, 2.0)]]
    assert wrapped[1](["a b", "c"], ["p", "q"], wanted=[None, 2]) == [None, [(0, 1, 2.0)]]
    assert wrapped[3](torch.zeros(2, 3, 3, 4, 4), ["p", "q"], wanted=[1, 2], other=[5, 6]).tolist() == [1.0, 2.0]


def test_an_oracle_compares_no_row_without_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def halves(outputs: Any, prompts: Any, group: torch.Tensor, **columns: Any) -> torch.Tensor:
        calls.append((len(outputs), [turn[0]["content"][-1]["text"] for turn in prompts], group.tolist()))
        return torch.full((len(outputs), len(outputs)), 0.5)

    monkeypatch.setattr(edits, "judge_pairs", lambda **settings: halves)
    oracle = edits.judge_edit_pairs(server=SERVER)  # type: ignore[arg-type]
    assert columns_read(oracle) == {"source"}
    picture = torch.zeros(3, 2, 2)
    wins = oracle(torch.zeros(3, 3, 2, 2), ["a", "b", "c"], torch.tensor([0, 1, 0]), source=[picture, None, picture])
    assert calls == [(2, ["a", "c"], [0, 0])] and wins[[0, 2]][:, [0, 2]].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert bool(wins[1].isnan().all()) and bool(wins[:, 1].isnan().all())


def test_commands_refuse_before_they_sample(tmp_path: Path) -> None:
    silent = policy()
    silent.sample = None  # type: ignore[assignment]
    line = "reward a: reads the column 'answer' of the prompts; they have none"
    rewards = {"a": mm.rewards.math_answer()}
    with pytest.raises(UserError, match=line):
        make_pairs(silent, ["p", "q"], rewards, out=str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match=line):
        calibrate(silent, ["p", "q"], rewards, out=tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="judge: reads the column 'answer' of the prompts; they have none"):
        mm.compare(None, mm.rewards.jpeg(), guidance=["fk"], prompts=["p"], judge=mm.rewards.math_answer())
