"""The table of what is here of the field: it names nothing that is gone, counts as it shows, and the page beside it is of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmalign.lookup import coverage
from mmalign.lookup.coverage import System, counts, is_here, mistakes, page, systems, views

ROOT = Path(__file__).parents[2]
ROW = System("x", "X", "text", ("methods.dpo",), "tests/lookup/test_coverage.py", "")


def test_names_configs_and_tests_are_there():
    assert list(mistakes(systems(), tests=ROOT / "tests")) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"here": ("methods.dqo",)}, "x: methods.dqo is not here"),
        ({"here": ("configs/text/dqo",)}, "x: configs/text/dqo is not here"),
        ({"here": ("policies/nothing",)}, "x: policies/nothing is not here"),
        ({"here": ()}, "x: called complete without a name or a test"),
        ({"test": ""}, "x: called complete without a name or a test"),
        ({"test": "tests/gone.py"}, "x: tests/gone.py is not there"),
    ],
)
def test_what_is_gone_is_said(change, words):
    assert words in list(mistakes([ROW._replace(**change)], tests=ROOT / "tests"))


def test_two_rows_of_one_system():
    assert list(mistakes([ROW, ROW])) == ["x: 2 rows"]


@pytest.mark.parametrize(
    "word",
    ["methods.dpo", "rewards.jpeg", "guidance.rlg", "suites.pope", "commands.make_pairs", "data.texts", "combinations.worst",
     "configs/text/dpo", "evaluation.ranking", "lookup/coverage", "policies/scorers/heads"],
)  # fmt: skip
def test_every_kind_of_name(word):
    assert is_here(word) and not is_here(f"{word}_not")


def test_a_row_says_how_it_stands():
    assert [ROW.status, ROW._replace(lacks="a half").status, ROW._replace(here=(), lacks="all").status] == [
        "complete",
        "partial",
        "missing",
    ]
    assert ROW._replace(here=(), lacks="out of the field: a tokenizer").status == "out"
    assert counts([ROW, ROW._replace(lacks="a half")]) == {"complete": 1, "partial": 1, "missing": 0, "out": 0}


def test_the_list_is_whole():
    rows = systems()
    assert len(rows) == 196 and counts(rows)["out"] == 13 and all(row.title and row.modality for row in rows)


def test_methods_by_what_they_learn_from():
    shown = {view.method: view for view in views()}
    assert shown["dpo"][1:4] == ("pairs", "ref", "outputs") and shown["orpo"].reference == "none"
    assert shown["dense_dpo"].granularity == "segments" and shown["diffusion_dpo"].modalities == "diffusion and flow, by errors"
    assert shown["grpo"].signal == "rewards" and shown["inpo"].reference == "previous, ref"
    families = {path.name for path in (coverage.PACKAGE / "methods").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert families == coverage.SIGNALS.keys()


def test_the_page_is_of_today():
    assert (coverage.PACKAGE / "lookup" / "COVERAGE.md").read_text(encoding="utf-8") == page(systems()), "mmalign coverage --page it"


def test_the_command(mmalign):
    whole = mmalign("coverage", "complete")
    assert whole.code == 0 and "dpo" in whole.out and "complete" in whole.out.splitlines()[-1]
    assert mmalign("coverage", "finished").err.strip() == "coverage: got 'finished', takes complete, partial, missing, out"
