"""The script that compares two trees sees what differs, and spells its settings as this tree's configs do."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
import yaml

from mmalign.config import check, load

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "unchanged.py"))
TOLERANCE = 1e-6


def rows(**changed):
    """Two rows of a log; ``changed``: of the second."""
    return {"eval 0": {"gold": 0.5}, "train 1": {"loss": -0.25, "lr": 1e-4, "kl": math.nan, **changed}}


def compared(base, here):
    difference = SCRIPT["Difference"]()
    SCRIPT["compare_rows"](difference, base, here, TOLERANCE)
    return difference


@pytest.mark.parametrize("name", SCRIPT["CONFIGS"])
def test_a_run_is_shortened_in_the_spelling_of_this_tree(name, tmp_path):
    file = ROOT / "configs" / f"{name}.yaml"
    settings = SCRIPT["overrides"](yaml.safe_load(file.read_text(encoding="utf-8")), steps=3, folder=tmp_path / "runs")
    assert check(load(file, settings)) == []
    assert {setting.partition("=")[2] for setting in settings} == {"3", str(tmp_path / "runs")}


def test_a_spelling_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="got the keys use, title"):
        SCRIPT["overrides"]({"use": "online", "title": "x"}, steps=1, folder=Path("runs"))


def test_equal_logs_are_equal():
    difference = compared(rows(), rows())
    assert (difference.rows, len(difference.fields), difference.largest, difference.relative) == (2, 4, 0.0, 0.0)
    assert difference.wrong == [] and difference.alone == []


def test_a_sum_in_another_order_is_equal_and_its_difference_is_told():
    difference = compared(rows(), rows(loss=-0.25 * (1 + 2**-22)))
    assert difference.wrong == [] and difference.relative == pytest.approx(2**-22, rel=1e-3)


@pytest.mark.parametrize("changed", [{"loss": -0.250001}, {"lr": 1.0001e-4}, {"kl": 0.1}, {"loss": math.nan}])
def test_a_number_that_differs_is_seen(changed):
    (name,) = changed
    difference = compared(rows(), rows(**changed))
    assert len(difference.wrong) == 1 and difference.wrong[0].startswith(f"train 1: {name} was ")


def test_a_row_or_every_name_that_is_missing_is_wrong_and_a_name_is_told():
    assert compared(rows(), {"eval 0": {"gold": 0.5}}).wrong == ["rows of one tree only: train 1"]
    assert compared({"eval 0": {"gold": 0.5}}, {"eval 0": {"golden": 0.5}}).wrong == ["there is no number that both trees log"]
    difference = compared(rows(), rows(length=7.0))
    assert difference.wrong == [] and difference.alone == ["train length (here)"]


def test_times_and_memory_are_left_out_and_null_is_kept(tmp_path):
    row = {"step": 1, "phase": "train", "seconds": 2.5, "update_seconds": 0.1, "memory_gib": 3.0, "loss": 0.5, "kl": None}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    read = SCRIPT["rows_of"](tmp_path)
    assert list(read) == ["train 1"] and list(read["train 1"]) == ["loss", "kl"]
    assert read["train 1"]["loss"] == 0.5 and math.isnan(read["train 1"]["kl"])


@pytest.mark.parametrize(
    "here, wrong",
    [
        ({"a": [1.0, 2.0], "b": [0.0]}, ""),
        ({"a": [1.0, 2.0 + 1e-6], "b": [0.0]}, ""),
        ({"a": [1.0, 2.0 + 1e-5], "b": [0.0]}, "a: the trained tensor is 1e-05 away"),
        ({"a": [1.0, math.nan], "b": [0.0]}, "a: the trained tensor is inf away"),
        ({"a": [1.0], "b": [0.0]}, "a: the trained tensor was [2], is [1]"),
        ({"a": [1.0, 2.0]}, "trained tensors of one tree only: 1, such as b (base)"),
    ],
)
def test_trained_tensors(here, wrong):
    difference = SCRIPT["Difference"]()
    base = {"a": [1.0, 2.0], "b": [0.0]}
    made = [{name: torch.tensor(values, dtype=torch.float64) for name, values in tensors.items()} for tensors in (base, here)]
    SCRIPT["compare_tensors"](difference, *made, TOLERANCE)
    assert [line.startswith(wrong) for line in difference.wrong] == ([True] if wrong else [])


def test_a_run_that_was_interrupted_is_made_again(tmp_path):
    for name, status in (("whole", "finished"), ("cut", "interrupted")):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "summary.json").write_text(json.dumps({"status": status}), encoding="utf-8")
    assert SCRIPT["finished"](tmp_path / "whole") == [tmp_path / "whole" / "run"]
    assert SCRIPT["finished"](tmp_path / "cut") == []
