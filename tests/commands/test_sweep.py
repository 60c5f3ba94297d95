"""Sweeps: which runs there are, what becomes of those that fail, what the same again does, and the page."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.commands import sweep as command  # the function
from mmalign.commands._cells import alternatives, grid
from mmalign.report.sweep import page, terminal
from mmalign.types import UserError

module = sys.modules["mmalign.commands.sweep"]
TINY = ["evaluation.samples=1", "evaluation.prompts=[the value of]", "evaluation.every=1", "steps=1", "batch={records: 2, micro_rows: 4}"]
TINY += ["records={use: text_pairs, prompts: 4}"]

FAKE = """
import json, sys, pathlib
folder, name, beta, seed = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
if "bad" in name:
    print("method.beta: got nonsense", flush=True)
    sys.exit(2)
run = folder / name
run.mkdir()
(run / "config.yaml").write_text("rewards: {proxy: x}\\nevaluation: {judges: {gold: y}}\\n")
rows = []
for step in range(6):
    d = step / (10 * beta) ** 0.5
    gold = .2 + d * (.5 - .3 * (0 if d == 0 else __import__("math").log(d))) + .01 * seed * d
    rows.append({"step": step, "phase": "eval", "seconds": 1.0, "kl": d * d, "proxy": d, "gold": gold})
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
after = {f"{key}_{when}": rows[place][key] for key in ("proxy", "gold") for when, place in (("before", 0), ("after", -1))}
summary = {"status": "finished", "rewards": ["proxy"], "judges": ["gold"], "kl": rows[-1]["kl"], "train_seconds": 2.0, **after}
(run / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def started(monkeypatch):
    """Names of runs that were started: scripts that write what a run would."""
    names = []

    def start(folder, cell, slot, processes):
        names.append(cell.name)
        log = folder / "logs" / f"{cell.name}.log"
        log.parent.mkdir(exist_ok=True)
        words = [str(folder), cell.name, str(cell.values.get("beta", 0.1)), str(cell.values.get("run.seed", 0))]
        with open(log, "ab") as file:
            return subprocess.Popen([sys.executable, "-c", FAKE, *words], stdout=file, stderr=subprocess.STDOUT)

    monkeypatch.setattr(module, "_started", start)
    monkeypatch.setattr(module, "check", lambda node: ["method.use: got 'worst'"] if "worst" in str(node["method"]) else [])
    return names


def swept(tmp_path, *words, **more):
    said = []
    return command(["text/dpo"], words, out=tmp_path / "out", say=said.append, **more), said


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a,b", ["a", "b"]),
        ("[a, b],[c]", ["[a, b]", "[c]"]),
        ("{use: x, y: 1}", ["{use: x, y: 1}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        (".05, 1e-1", [".05", "1e-1"]),
        ("", [""]),
    ],
)
def test_values_are_parted_at_commas_outside_of_brackets_and_quotes(text, wanted):
    assert alternatives("key", text) == wanted


def test_every_combination_is_a_run_and_short_words_are_the_method_s():
    cells, axes, fixed, digests = grid(["text/dpo"], ["beta=.05,.1", "method=dpo,ipo", "run.seed=0,1", "steps=3"])
    assert len(cells) == 8 and fixed == ["steps=3"] and list(axes) == ["method", "beta", "run.seed"] and list(digests) == ["text/dpo"]
    assert cells[0].words == ("method={use: dpo}", "method.beta=.05", "run.seed=0", "steps=3")
    assert cells[-1].name == "ipo-beta.1-seed1" and len({cell.name for cell in cells}) == 8
    several = grid(["text/dpo", "text/kto"], ["steps=3"])
    assert [cell.name for cell in several.cells] == ["text_dpo", "text_kto"] and list(several.axes) == ["config"]
    odd = grid(["text/dpo"], ["run.trackers=[],[tensorboard]", "records.prompts=1,2"]).cells
    assert len({cell.name for cell in odd}) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing differs between its runs"),
        (["steps=3"], "nothing differs between its runs"),
        (["beta=1,,2"], "beta=1,,2: has an empty value"),
        (["beta=1,1"], "has 1 twice"),
        (["beta=1,2", "beta=3"], "beta: is given twice"),
        (["run.name=a,b"], "run.name: a sweep names its runs itself"),
        (["beta"], "beta: takes key=value"),
        (["steps=1,2", "nope.x=1,2"], "unknown key|takes"),
        ([f"steps={','.join(map(str, range(1, 2000)))}"], "more than 1000 runs"),
    ],
)
def test_words_that_make_no_sweep_are_one_line(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command(["text/dpo"], words, out=tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_config_that_makes_no_run_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("use: make_ranked\n")
    with pytest.raises(UserError, match="a sweep is of runs; takes offline, online"):
        grid([str(tmp_path / "c.yaml")], ["count=1,2"])


@pytest.mark.parametrize("processes", [1, 3])
def test_runs_that_fail_are_rows_that_say_why_and_stop_no_other(tmp_path, started, processes):
    made, said = swept(tmp_path, "method=dpo,bad,worst", "beta=.1,.2", "run.seed=0,1", processes=processes)
    assert sorted(started) == sorted(f"{name}-beta{beta}-seed{seed}" for name in ("dpo", "bad") for beta in (".1", ".2") for seed in (0, 1))
    rows = {row["name"]: row for row in made.table["rows"]}
    assert made.failed == 8 and rows["bad-beta.1-seed0"]["why"] == "method.beta: got nonsense"
    assert rows["worst-beta.2-seed1"]["why"] == "method.use: got 'worst'" and rows["dpo-beta.1-seed0"]["why"] == ""
    ended = [row["gold"] for row in made.table["rows"]]
    known = [value for value in ended if value is not None]
    assert known == sorted(known, reverse=True) and ended[len(known) :] == [None] * 8  # the best first, failures last
    assert [line for line in said if "12 runs: 0 finished, 4 with mistakes in their configs, 8 to train" in line]
    assert (tmp_path / "out" / "report.html").is_file() and json.loads((tmp_path / "out" / "table.json").read_text())["name"] == "out"
    columns, lines, failed = terminal(made.table)
    assert "status" in columns and len(failed) == 8 and "failed: method.beta: got nonsense" in str(lines)


def test_the_same_again_trains_what_is_not_finished_and_another_sweep_is_refused(tmp_path, started):
    swept(tmp_path, "beta=.1,.2", "steps=3")
    (tmp_path / "out" / "beta.1" / "summary.json").write_text('{"status": "interrupted"')  # torn
    os.rename(tmp_path / "out" / "beta.1", tmp_path / "away")
    started.clear()
    made, _ = swept(tmp_path, "beta=.1,.2,.4", "steps=3")
    assert started == ["beta.1", "beta.4"] and made.failed == 0 and len(made.table["rows"]) == 3
    with pytest.raises(UserError, match=r"holds the sweep steps=3 beta=.1,.2,.4; takes the same keys and fixed values"):
        swept(tmp_path, "beta=.1,.2", "steps=4")
    remembered = json.loads((tmp_path / "out" / "sweep.json").read_text())
    (tmp_path / "out" / "sweep.json").write_text(json.dumps({**remembered, "configs": {"text/dpo": "other"}}))
    with pytest.raises(UserError, match="holds runs of text/dpo as it was before it was changed"):
        swept(tmp_path, "beta=.1,.2,.4", "steps=3")


def test_the_law_is_of_all_runs_of_a_method_and_the_page_draws_it(tmp_path, started):
    made, _ = swept(tmp_path, "beta=.1,.2", "run.seed=0,1")
    (law,) = made.table["laws"]["gold"].values()
    assert (law["law"]["alpha"]["value"], law["law"]["beta"]["value"]) == pytest.approx((0.505, 0.3), abs=1e-6)  # mean of seeds 0 and 1
    assert law["law"]["turns"] and law["law"]["runs"] == 4 and law["law"]["peak"]["value"] == pytest.approx(math.exp(2 * (0.505 / 0.3 - 1)))
    first, _ = made.table["means"]
    assert first["runs"] == first["of"] == 2 and first["gold sd"] == pytest.approx(0.01 * 12.5**0.5 / 2**0.5) and first["beta"] == ".2"
    html = page(made.table)
    assert "4 runs; gold ends highest in" in html and "turns: more KL costs" in html and "Means over seeds" in html
    assert html.count('<svg class="plot"') == 2 and "gold: gain against the square root of the KL" in html
    assert 'href="beta.1-seed0/report.html"' in html
    with pytest.raises(UserError, match=r"--sort: got 'nope', takes beta, run.seed, status, gold, proxy"):
        swept(tmp_path, "beta=.1,.2", "run.seed=0,1", sort="nope")


def test_what_a_run_said_is_escaped(tmp_path, started):
    made, _ = swept(tmp_path, "beta=.1,.2")
    made.table["rows"][0] |= {"status": "failed", "why": "<script>alert(1)</script>"}
    assert '<tr class="failed">' in page(made.table) and 'class="words">' in page(made.table)
    assert "<script>alert(1)" not in page(made.table) and "&lt;script&gt;alert(1)" in page(made.table)


def test_a_signal_ends_a_sweep_and_starts_no_further_run(tmp_path, monkeypatch, started):
    def slow(folder, cell, slot, processes):
        started.append(cell.name)
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "logs" / f"{cell.name}.log").write_text("interrupted after step 3\n")
        os.kill(os.getpid(), signal.SIGTERM)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    monkeypatch.setattr(module, "_started", slow)
    made, _ = swept(tmp_path, "beta=.1,.2,.3")
    assert started == ["beta.1"] and made.interrupted == "SIGTERM"
    rows = {row["name"]: row for row in made.table["rows"]}
    assert rows["beta.1"]["why"] == "killed by SIGTERM" and rows["beta.2"]["status"] == "waiting"


def test_real_runs_one_of_which_ends_badly(tmp_path):
    """Two processes of `mmalign train`: one run has a KL and a page, the other's reason is its own last line."""
    made, _ = swept(tmp_path, *TINY, "optimizer.rate=1e-3,1e30", "run.non_finite=raise", "run.trackers=[]")
    rows = {row["optimizer.rate"]: row for row in made.table["rows"]}
    assert rows["1e-3"]["status"] == "finished" and rows["1e-3"]["kl"] >= 0 and rows["1e-3"]["gold"] is not None
    assert made.failed == (rows["1e30"]["status"] == "failed")
    assert (Path(made.path) / rows["1e-3"]["name"] / "report.html").is_file() and (Path(made.path) / "logs").is_dir()


def test_an_axis_that_counts_records_has_a_law_of_data(tmp_path, monkeypatch):
    def start(folder, cell, slot, processes):
        count, seed = int(cell.values["records.prompts"]), int(cell.values["run.seed"])
        (folder / "logs").mkdir(exist_ok=True)
        (run := folder / cell.name).mkdir()
        (run / "config.yaml").write_text("rewards: {proxy: x}\nevaluation: {judges: {gold: y}}\n")
        gold = 0.6 - 0.4 * math.exp(-count / 20) + 0.001 * seed
        summary = {"status": "finished", "rewards": ["proxy"], "judges": ["gold"], "gold_after": gold, "proxy_after": 0.5, "kl": 1.0}
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "phase": "eval", "gold": gold, "proxy": 0.5, "kl": 1.0}) + "\n")
        (run / "summary.json").write_text(json.dumps(summary))
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(module, "_started", start)
    monkeypatch.setattr(module, "check", lambda node: [])
    made, _ = swept(tmp_path, "records.prompts=8,16,32,64", "run.seed=0,1")
    (law,) = [row for row in made.table["saturations"] if row["number"] == "gold"]
    assert abs(law["plateau"] - 0.6005) < 1e-6 and abs(law["enough"] - 20 * math.log(20)) < 0.01 and law["points"] == 8
    shown = made.page.read_text()
    assert "What data bought" in shown and "<td>records.prompts</td>" in shown
