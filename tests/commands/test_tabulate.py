"""Evaluations of several rewards and runs, beside each other."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

import mmalign as mm
from mmalign.cli import app
from mmalign.commands._tax import Change
from mmalign.runs import answers
from mmalign.types import UserError


def evaluated(folder, who, suite, **values):
    folder.mkdir(parents=True)
    node = {
        "suite": suite,
        "who": who,
        "headline": ["accuracy"],
        "values": {name.replace("_n", "/n="): {"value": value} for name, value in values.items()},
    }
    (folder / "results.json").write_text(json.dumps(node))
    return folder


def test_columns_correlations_and_the_drop(tmp_path):
    accuracies = {"rm": (0.9, 0.7), "dpo": (0.88, 0.5), "judge": (0.7, 0.72), "weak": (0.5, None)}
    folders = []
    for name, (known, new) in accuracies.items():
        folders.append(evaluated(tmp_path / f"{name}-in", name, "reward_bench", accuracy=known, sections=0.1))
        folders.append(evaluated(tmp_path / f"{name}-out", name, "rag_reward_bench", accuracy=new))
    made = mm.tabulate(folders, out=tmp_path / "table", inside="reward_bench", outside="rag_reward_bench")
    assert made.columns == ["reward_bench: accuracy", "rag_reward_bench: accuracy", "drop"]
    assert made.rows["dpo"]["drop"] == pytest.approx(0.38) and made.rows["rm"]["drop"] == pytest.approx(0.2)
    first = made.correlations[0]
    assert (first.rows, first.spearman, first.kendall) == (3, pytest.approx(-0.5), pytest.approx(-1 / 3))
    text = (tmp_path / "table/table.md").read_text()
    assert "| weak | 0.500 | – | – |" in text and (tmp_path / "table/table.png").stat().st_size > 1000
    chosen = mm.tabulate(folders[:1], out=tmp_path / "one", numbers=["reward_bench: sections"])
    assert chosen.columns == ["reward_bench: sections"] and chosen.correlations == [] and not (tmp_path / "one/table.png").exists()


def run(folder, reward, judge, model):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        json.dumps(
            {
                "use": "online",
                "rewards": {"rm": {"use": "trained", "run": str(model)}},
                "evaluation": {"judges": {"gold": {"use": "length"}}},
            }
        )
    )
    rows = [{"phase": "eval", "step": step, "rm": reward * step, "gold": judge} for step in (0, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_reward_model_x_reward_x_judge_over_runs(tmp_path):
    folders = []
    for number, (accuracy, reward, judge) in enumerate([(0.6, 3.0, 0.2), (0.7, 2.0, 0.4), (0.9, 1.0, 0.8)]):
        evaluated(tmp_path / f"rm{number}/evaluations/reward_bench", f"rm{number}", "reward_bench", accuracy=accuracy)
        folders.append(run(tmp_path / f"run{number}", reward, judge, tmp_path / f"rm{number}"))
    made = mm.tabulate(folders, out=tmp_path / "table")
    assert made.columns == ["reward_bench: accuracy of its reward model", "reward rm", "judge gold"]
    assert made.rows["run2"] == {"reward_bench: accuracy of its reward model": 0.9, "reward rm": 1.0, "judge gold": 0.8}
    assert [one.spearman for one in made.correlations] == pytest.approx([-1, 1, -1])


def test_how_a_stance_drifted_over_a_run(tmp_path):
    config = {"use": "online", "rewards": {"r": {"use": "length"}}, "evaluation": {"judges": {"support": {"use": "length"}}}}
    shares = [(0, 0.2, 0.03), (50, 0.5, 0.04), (100, None, None), (150, 0.68, 0.04), (200, 0.7, 0.04)]
    rows = [{"phase": "eval", "step": step, "r": 1.0, "support": share, "support_se": error} for step, share, error in shares]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(json.dumps(config))
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["table", str(tmp_path / "run"), "--out", str(tmp_path / "table")])
    assert done.exit_code == 0 and "drift of" in done.output and "0.050\t150" in done.output, done.output
    text = (tmp_path / "table/table.md").read_text()
    assert "| run | support | 0.200 | 0.700 | 0.500 | 0.050 | 150 |" in text
    assert "| run | r | 1.000 | 1.000 | 0.000 | – | – |" in text  # still, and without errors
    kept = json.loads((tmp_path / "table/table.json").read_text())["drifts"]["run"]
    assert kept["support"]["time"] == 150 and kept["r"]["time"] is None


def asked(folder, using, answers, **values):
    """What ``mmalign eval`` leaves of a suite: number -> (value, error)."""
    folder.mkdir(parents=True)
    numbers = {
        name: {"value": value, "low": value - 2 * error, "high": value + 2 * error, "error": error}
        for name, (value, error) in values.items()
    }
    node = {"suite": folder.name.removesuffix("-ref"), "who": "x", "using": using, "headline": [next(iter(values))], "values": numbers}
    (folder / "results.json").write_text(json.dumps(node))
    lines = [{"id": name, "answer": answer} for name, answer in answers.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_alignment_gained_and_cost(tmp_path):
    """Two runs: one trained on a reward, that kept its best step, one on records."""
    judged = {"evaluation": {"judges": {"gold": {"use": "length"}}}}
    for name, config in {"a": {"use": "online", "rewards": {"rm": {"use": "length"}}, **judged}, "b": {"use": "offline", **judged}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(json.dumps(config))
        rows = [{"step": step, "gold": 0.5 + step / 100, "gold_se": 0.03} for step in (0, 10, 20)]
        rows = [{**row, "rm": row["step"] / 10, "rm_se": 0.1} for row in rows] if name == "a" else rows
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps({"phase": "eval", **row}) + "\n" for row in rows))
    (tmp_path / "a/summary.json").write_text(json.dumps({"best_step": 10}))
    for step, texts in {0: ("ab", "abcd"), 10: ("abcdef", "abcdef"), 20: ("a", "a")}.items():
        answers.write(tmp_path / "a", step, ["p", "q"], texts)
    asked(tmp_path / "a/evaluations/pope", "best", {"1": "yes it is", "2": "no", "3": "n"}, f1=(0.70, 0.03), yes=(0.6, 0.01))
    asked(tmp_path / "a/evaluations/pope-ref", "ref", {"1": "yes", "2": "no"}, f1=(0.85, 0.04), yes=(0.5, 0.01))
    asked(tmp_path / "a/evaluations/chair", "best", {}, chair=(0.2, 0.01))
    asked(tmp_path / "a/evaluations/chair-ref", "ref", {}, chair=(0.3, 0.01))
    made = mm.tabulate([tmp_path / "a", tmp_path / "b"], out=tmp_path / "table", less=["chair: chair"])
    assert made.rows["a"]["pope: f1"] == 0.7  # what the run came to, not what it began with
    assert made.rows["a"]["length ratio"] == pytest.approx(12 / 6) and made.rows["a"]["pope: length ratio"] == pytest.approx(11 / 5)
    head, rows = made.changed()
    assert head == ["reward rm", "judge gold", "chair: chair", "pope: f1"]
    assert rows == [
        ["a", "own +1.000 ± 0.141 gained", "+0.100 ± 0.042 gained", "-0.100 ± 0.014 gained", "-0.150 ± 0.050 lost"],
        ["b", "–", "own +0.200 ± 0.042 gained", "–", "–"],
    ]
    text = (tmp_path / "table/table.md").read_text()
    assert "| after training - before | reward rm | judge gold | chair: chair | pope: f1 |" in text and "| b | – | own +0.200" in text
    other = mm.tabulate([tmp_path / "a"], out=tmp_path / "other", own=["judge gold"]).changes["a"]
    assert [(one.name, one.own, one.verdict) for one in other][:2] == [("judge gold", True, "gained"), ("reward rm", False, "gained")]
    assert {one.name: one.verdict for one in other}["chair: chair"] == "lost"
    done = CliRunner().invoke(app, ["table", str(tmp_path / "a"), "--less", "chair: chair", "--out", str(tmp_path / "cli")])
    assert done.exit_code == 0 and "-0.150 ± 0.050 lost" in done.output, done.output
    with pytest.raises(UserError, match=r"table.less: got 'chair', takes "):
        mm.tabulate([tmp_path / "a"], out=tmp_path / "x", less=["chair"])
    assert Change("x", 0.0, 0.1, 0.05).verdict == "no difference" and Change("x", 0.0, 9.0, math.nan).verdict == "not known"


def test_curves_of_best_of_n(tmp_path):
    one = evaluated(tmp_path / "a", "one", "best_of_samples", gold_n1=0.0, gold_n4=1.0, gold_n16=0.5)
    many = evaluated(tmp_path / "b", "ensemble", "best_of_samples", gold_n1=0.0, gold_n4=1.0, gold_n16=1.5)
    mm.tabulate([one, many], out=tmp_path / "table")
    curves = json.loads((tmp_path / "table/table.json").read_text())["curves"]
    assert [point[1] for point in curves["ensemble"]] == [0.0, 1.0, 1.5]
    assert curves["one"][1][0] == pytest.approx(mm.evaluation.best_of_n_kl(4))


def test_the_command_and_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = evaluated(tmp_path / "a", "one", "reward_bench", accuracy=0.75)
    done = CliRunner().invoke(app, ["table", str(folder)])
    assert done.exit_code == 0 and "0.750" in done.output and (tmp_path / "table/table.md").exists(), done.output
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is neither a run \(config.yaml\) nor a folder of mmalign eval"):
        mm.tabulate([tmp_path / "empty"], out=tmp_path / "x")
    with pytest.raises(UserError, match="takes two suites that were measured: reward_bench"):
        mm.tabulate([folder], out=tmp_path / "x", inside="reward_bench", outside="other")
    with pytest.raises(UserError, match=r"table.numbers: got 'x', takes reward_bench: accuracy"):
        mm.tabulate([folder], out=tmp_path / "x", numbers=["x"])
    (folder / "results.json").write_text("{}")
    with pytest.raises(UserError, match="is not what mmalign eval writes"):
        mm.tabulate([folder], out=tmp_path / "x")
