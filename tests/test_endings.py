"""What a run says when it has ended."""

from __future__ import annotations

import json
import sys

import pytest

from mmalign.cli.endings import ending

CONFIG = "steps: 40\nrewards: {proxy: {use: x}}\nevaluation: {judges: {gold: {use: y}}}\n"
SUMMARY = {"status": "finished", "steps": 40, "train_seconds": 185.2, "kl": 1.25}
ROWS = [(0, 0.2, 0.5), (10, 0.5, 0.9), (20, 0.7, 0.7), (30, 0.9, 0.3), (40, 0.95, 0.1)]


def ended(folder, monkeypatch, rows=ROWS, scores=False, exports=True, **summary):
    monkeypatch.chdir(folder)
    run = folder / "runs" / "mine"
    run.mkdir(parents=True, exist_ok=True)
    numbers = [{"step": step, "phase": "eval", "seconds": 1.0, "proxy": proxy, "proxy_se": 0.01, "gold": gold, "gold_se": 0.01}
               for step, proxy, gold in rows]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers))
    (run / "config.yaml").write_text(CONFIG)
    (run / "report.html").write_text("<html></html>")
    (run / "summary.json").write_text(json.dumps({**SUMMARY, **summary}))
    return list(ending(run, {**SUMMARY, **summary}, scores=scores, exports=exports))


def test_what_was_gained_what_it_cost_where_it_is_and_what_next(tmp_path, monkeypatch):
    found, cost, run, report, following = ended(tmp_path, monkeypatch)
    assert found == "found:  Gold 0.50 -> 0.10; over-optimised since step 10 (gold fell)"
    assert cost == "cost:   3 min 05 s of training, KL 1.25 nats from where it began"
    assert (run, report) == (f"run:    {tmp_path / 'runs' / 'mine'}", f"report: {tmp_path / 'runs' / 'mine' / 'report.html'}")
    assert following == "next:   mmalign sample mine, mmalign export mine, mmalign report mine --open"


def test_a_reward_model_is_no_sampler(tmp_path, monkeypatch):
    *_, following = ended(tmp_path, monkeypatch, scores=True)
    trained = f"rewards: {{learned: {{use: trained, run: {tmp_path / 'runs' / 'mine'}}}}}"
    assert following == f"next:   {trained}, mmalign export mine, mmalign report mine --open"


def test_what_no_other_library_loads_is_not_to_be_exported(tmp_path, monkeypatch):
    *_, following = ended(tmp_path, monkeypatch, exports=False)
    assert following == "next:   mmalign sample mine, mmalign report mine --open"


def test_a_page_that_could_not_be_written_is_not_named(tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine" / "report.html").mkdir(parents=True)
    monkeypatch.setattr("pathlib.Path.write_text", lambda path, text: path.is_dir() or path.write_bytes(text.encode()))
    assert [line.partition(":")[0] for line in ended(tmp_path, monkeypatch)] == ["found", "cost", "run", "next"]


@pytest.mark.parametrize(("status", "words"), [("interrupted", "--resume"), ("learned nothing", "says why"), ("not finite", "says why")])
def test_a_run_that_did_not_get_there_says_what_helps(tmp_path, monkeypatch, status, words):
    *_, following = ended(tmp_path, monkeypatch, status=status, kl=float("nan"))
    assert words in following and "mmalign export" not in following


def test_no_kl_is_none_and_a_terminal_is_not_overrun(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    found, cost, *_ = ended(tmp_path, monkeypatch, kl=None)
    assert cost == "cost:   3 min 05 s of training"
    assert "\n        " in found and max(map(len, found.splitlines())) <= 50
