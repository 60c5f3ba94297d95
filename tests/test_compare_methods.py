"""scripts/compare_methods.py: one budget for each method, and what chose a setting is not in the table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_methods.py"


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("compare_methods", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _summary(gold: float) -> dict[str, Any]:
    return {
        "rewards": ["plain"], "judges": ["gold"], "plain_before": 0.6, "plain_after": 0.9, "gold_before": 0.2, "gold_after": gold,
        "gold_se_after": 0.03, "steps": 60, "train_seconds": 20.0,
    }  # fmt: skip


def _trains(monkeypatch: pytest.MonkeyPatch, gold: Any) -> list[list[str]]:
    """Commands are recorded, and write what ``gold(command words)`` says; None fails."""
    commands: list[list[str]] = []

    def run(command: list[str], **how: Any) -> Any:
        commands.append(command[4:])
        words = dict(word.split("=", 1) for word in command[5:] if word != "--resume")
        value = gold(command[4], words)
        if value is None:
            return SimpleNamespace(returncode=1, stderr="mmalign: no memory")
        place = Path(words["run.folder"]) / command[4].replace("/", "_")
        place.mkdir(parents=True, exist_ok="--resume" in command)
        (place / "summary.json").write_text(json.dumps(_summary(value)))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr("subprocess.run", run)
    return commands


def test_the_first_seed_chooses_a_rate_and_the_others_are_reported(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends = {"0": {"6e-05": 0.3, "": 0.5, "0.0006": 0.7}, "1": {"0.0006": 0.4}, "2": {"0.0006": 0.2}}
    commands = _trains(monkeypatch, lambda name, words: ends[words["run.seed"]][words.get("optimizer.rate", "")])
    rate, runs = script.tuned("dpo", "text", [0.3, 1.0, 3.0], 3, tmp_path)
    assert rate == 3.0 and [run["gold_after"] for run in runs] == [0.4, 0.2] and len(commands) == 5
    assert script.tuned("dpo", "text", [0.3, 1.0, 3.0], 3, tmp_path) == (rate, runs) and len(commands) == 5  # none is made again
    page = script.table("text", {"dpo": runs}, rates=[0.3, 1.0, 3.0], chosen={"dpo": rate})
    assert "`python scripts/compare_methods.py text --rates 0.3 1 3 --seeds 3`" in page and "2 seeds" in page
    row = next(line for line in page.splitlines() if line.startswith("| [`dpo`]"))
    assert "| 3 | 0.900 ± 0.000 | 0.300 ± 0.141 |" in row and "0 of 1 end with `gold` below" in page


def test_a_rate_that_fails_is_not_chosen_and_a_reference_is_made_first(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = _trains(monkeypatch, lambda name, words: None if words.get("optimizer.rate") == "0.0015" else 0.3)
    rate, runs = script.tuned("rto", "text", [1.0, 3.0], 2, tmp_path)
    assert rate == 1.0 and len(runs) == 1
    assert [command[0] for command in commands] == ["text/dpo", "text/rto", "text/rto", "text/dpo", "text/rto"]
    assert "rto at 3 times its rate, which is not among those that were tried: mmalign: no memory" in capsys.readouterr().out
    assert commands[2][-1] == f"references.dpo.from={tmp_path / '0' / 'text_dpo'}"
    _trains(monkeypatch, lambda name, words: None)
    assert script.tuned("ipo", "text", [1.0, 3.0], 2, tmp_path)[1] == [{"failed": "mmalign: no memory"}]


def test_a_run_that_was_begun_goes_on(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = _trains(monkeypatch, lambda name, words: 0.4)
    (tmp_path / "rate_0.3" / "0" / "text_dpo").mkdir(parents=True)
    rate, runs = script.tuned("dpo", "text", [0.3, 1.0], 2, tmp_path)
    assert (rate, len(runs)) == (0.3, 1) and ["--resume" in command for command in commands] == [True, False, False]


@pytest.mark.parametrize("words", [["--rates", "1", "3"], ["--rates", "0", "1", "--seeds", "3"]])
def test_a_budget_that_cannot_choose_is_refused(script: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_methods.py", "text", *words])
    with pytest.raises(SystemExit):
        script.main()
    assert "takes multiples above 0, and two seeds or more: the first one chooses" in capsys.readouterr().err
