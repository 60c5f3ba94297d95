"""The script that trains every method on several processes sees what differs from one, and says the same of what both refuse."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from scripts import processes

OF = {"kinds": ["online/paths"], "processes": [2], "ways": ["whole"], "models": ["full"]}


def test_runs_are_compared_number_by_number_and_refusals_by_their_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call = argparse.Namespace(methods=["reinforce", "draft"], **OF)
    begun = processes.Trained("online/paths", "full", "whole", 2).folder(tmp_path) / "reinforce" / "run"
    begun.mkdir(parents=True)
    (begun / "config.yaml").touch()  # by a call that was ended; made anew
    assert processes.table(call, tmp_path) == 0
    row = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("online/paths"))
    alike, refused, differs, numbers, share = row.partition("|")[2].split()[:5]
    assert (alike, refused, differs) == ("1", "1", "0") and int(numbers) > 30 and float(share) < 1
    many = processes.Trained("online/paths", "full", "whole", 2).folder(tmp_path)
    log = many / "reinforce" / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    next(line for line in lines[::-1] if line["phase"] == "train")["loss"] += 1e-6
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (many / "draft.ended").write_text("no")
    assert processes.table(call, tmp_path) == 2
    told = capfd.readouterr().out
    assert "train 2: loss" in told and "refused by one: '" in told and "by several: 'no'" in told


def test_a_process_that_dies_is_told_and_the_next_methods_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(name: str, folder: Path, model: str, devices: object) -> None:
        if name == "odd":
            raise ZeroDivisionError("of odd")
        raise processes.UserError("as all are")

    monkeypatch.setitem(processes.KINDS, "rounds", processes.Kind(train, ["odd", "even"], processes.OF_ROUNDS))
    row, lines = processes.compared(processes.Trained("rounds", "full", "whole", 2), ["odd", "even"], tmp_path)
    assert (row.refused, row.wrong, row.share) == (1, ["odd"], math.inf)
    assert "ZeroDivisionError: of odd" in lines[1]


def test_a_run_that_logs_and_trains_nothing_by_itself_is_compared_by_its_log(tmp_path: Path) -> None:
    for name, gold in (("one", 1.0), ("many", 1.5)):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "phase": "eval", "gold": gold}) + "\n")
        (tmp_path / f"{name}.ended").touch()
    told = processes.apart(tmp_path / "one", tmp_path / "many", {"atol": 0.5, "rtol": 0.0})
    assert told[".: eval 1: gold 1.0 1.5"] == pytest.approx(1.0)
