from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from mmalign.report import build
from mmalign.report.comparison import comparison
from mmalign.report.plots import Plot, Series, draw
from mmalign.report.read import read
from mmalign.runs import folder
from mmalign.types import UserError
from tests.helpers.fake_run import CONFIG, EVALS, make_run

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Reads a page, and insists that every element that opens is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[self.tags[-1][1].get("id", "")] = data
        if not {"style", "script"} & set(self.open):
            self.words.append(data.strip())

    def named(self, tag, kind=""):
        return [attrs for name, attrs in self.tags if name == tag and (not kind or kind in (attrs.get("class") or "").split())]

    @property
    def text(self):
        return " ".join(word for word in self.words if word)


def page(run):
    text = build(run).read_text(encoding="utf-8")
    return Page(text), text


def test_a_whole_run(tmp_path):
    parsed, text = page(make_run(tmp_path))
    assert "Gold 0.50 → 0.96; spread 91\N{NO-BREAK SPACE}% of real data; no over-optimisation seen" in parsed.text
    frames = parsed.named("img", "frame")
    assert [frame["data-step"] for frame in frames] == [str(step) for step in EVALS]
    assert ["hidden" in frame for frame in frames] == [True] * 5 + [False]
    assert frames[0]["data-readout"] == "proxy 0.48 · gold 0.50 · spread 106\N{NO-BREAK SPACE}%"
    assert next(a for a in parsed.named("input") if a["id"] == "slider")["max"] == "5"
    assert len(parsed.named("svg", "plot")) == 6
    assert "digit seven" in parsed.text and "flow_grpo" in parsed.text and "python" in parsed.text
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))
    outside = [v for _, attrs in parsed.tags for k, v in attrs.items() if k in ("src", "href") and not v.startswith("data:")]
    assert outside == []
    assert all(image.get("alt") for image in parsed.named("img")) and all(plot.get("aria-label") for plot in parsed.named("svg", "plot"))


def test_over_optimisation_is_said_at_the_top(tmp_path):
    parsed, _ = page(make_run(tmp_path, overoptimised=True))
    assert "over-optimised since step 40 (gold, spread fell)" in parsed.text
    assert "Gold fell from 0.89 to 0.72 while proxy rose; its best was at step 40, and by step 80" in parsed.text


def test_the_page_follows_the_folder(tmp_path):
    run = make_run(tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:30]) + '\n{"step": 31, "ph')
    (run / "summary.json").unlink()
    for step in EVALS[2:]:
        (run / "samples" / f"step_{step:06d}.png").unlink()
    parsed, _ = page(run)
    assert "Running, step 28 of 100" in parsed.text and len(parsed.named("img", "frame")) == 2
    assert "has not written a summary yet" in parsed.text and "torn" in parsed.text
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "Running, step 100" in page(run)[0].text


def drop(run, *, phase=None, names=()):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k.split("_se")[0] not in names} for row in rows if row["phase"] != phase]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


@pytest.mark.parametrize(
    ("phase", "names", "words"),
    [
        (None, ["gold"], ["Proxy 0.48 → 0.98", "no judge to check it", "trained rewards only"]),
        (None, ["kl"], ["No KL was logged"]),
        (None, ["spread", "spread_ratio"], ["Spread was not evaluated", "Gold 0.50 → 0.96; no over-optimisation seen"]),
        (None, ["spread_ratio"], ["Real data's spread is not known"]),
        (None, ["gold", "spread", "spread_ratio"], ["cannot be told"]),
        (None, ["proxy"], ["no trained reward was evaluated"]),
        (None, ["ratio_mean", "ratio_max", "clip_fraction"], ["No importance ratio was logged", "No clip fraction was logged"]),
        ("eval", [], ["nothing has been evaluated yet", "From training steps, because KL was not evaluated often enough"]),
        ("train", [], ["No training step has been logged"]),
    ],
)
def test_what_is_missing_is_said(tmp_path, phase, names, words):
    run = make_run(tmp_path)
    drop(run, phase=phase, names=names)
    parsed, _ = page(run)
    for word in words:
        assert word in parsed.text, word


def test_kl_is_said_in_nats_and_in_the_units_of_public_code(tmp_path):
    """A run whose events have 64 numbers, and nine steps: 8.81 = 9 (0.989)^2, and 0.979 / 64."""
    run = make_run(tmp_path)
    said = "In step 100 8.81 nats a trajectory, 0.98 a step, 0.0153 for each of the 64 numbers of a latent."
    assert said in page(run)[0].text
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "event_size": 1}))
    assert "nats a trajectory" not in page(run)[0].text


def test_a_run_on_given_records_shows_what_it_learns(tmp_path):
    """Both log-ratios fall while the margin grows, which the page has to show."""
    run = folder.open_run(tmp_path, "a", config={**CONFIG, "use": "offline"})
    train = [
        {"step": s, "phase": "train", "known": 1.0, "loss": 0.69 - 0.1 * s, "margin": 0.3 * s, "accuracy": 0.5 + 0.1 * s}
        | {"better": -0.2 * s, "worse": -0.5 * s}
        for s in range(1, 5)
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in [{"step": 0, "phase": "eval", "gold": 0.5, "kl": None}, *train]))
    parsed, _ = page(run.path)
    alts = [plot["aria-label"] for plot in parsed.named("svg", "plot")]
    assert alts == [
        "Rewards and judges: gold from 0.50 to 0.50",
        "Loss: loss from 0.59 to 0.29",
        "Margin: margin from 0.30 to 1.20",
        "Accuracy: accuracy from 0.60 to 0.90",
        "Log-ratios of chosen and rejected outputs: chosen from -0.20 to -0.80; rejected from -0.50 to -2.00",
    ]
    (undrawn,) = [words for words in parsed.words if "No KL was logged" in words]
    assert "Spread was not evaluated" in undrawn and "importance ratio" not in parsed.text and "Training reward" not in parsed.text


def test_figures_without_a_drawing_are_one_line(tmp_path):
    run = make_run(tmp_path)
    drop(run, names=["kl", "clip_fraction"])
    parsed, _ = page(run)
    assert len(parsed.named("svg", "plot")) == 4 and not {"Reward against KL", "Clip fraction"} & set(parsed.words)
    assert len([words for words in parsed.words if "No KL was logged" in words and "No clip fraction was logged" in words]) == 1


@pytest.mark.parametrize(
    ("ratios", "judges", "words"),
    [
        ((1.0, 0.8), ["gold"], "no judge fell, but spread fell below 85\N{NO-BREAK SPACE}% of real data's"),
        ((0.7, 0.8), ["gold"], "no judge fell, but spread began and is below 85\N{NO-BREAK SPACE}% of real data's"),
        ((1.0, 0.8), [], "no judge to check it, and spread fell below 85"),
        ((1.0, 0.85), ["gold"], "no over-optimisation seen"),
        ((0.7, 0.9), [], "no judge to check it, and no alarming loss of spread"),
    ],
)
def test_the_headline_does_not_speak_against_the_line_of_its_figure(tmp_path, ratios, judges, words):
    """Rewards that do not rise make a loss of spread no over-optimisation, and still no good news."""
    run = folder.open_run(tmp_path, "a", config={**CONFIG, "evaluation": {"judges": {name: {} for name in judges}}})
    rows = [{"step": s, "phase": "eval", "proxy": 0.5, "proxy_se": 0.1, "gold": 0.4, "gold_se": 0.1} for s in (0, 4)]
    rows = [{key: value for key, value in row.items() if judges or not key.startswith("gold")} for row in rows]
    run.metrics.write_text("".join(json.dumps({**row, "spread_ratio": r}) + "\n" for row, r in zip(rows, ratios, strict=True)))
    parsed, _ = page(run.path)
    assert words in parsed.text and ("no over-optimisation" in parsed.text) == (words == "no over-optimisation seen")


def test_an_empty_run_and_one_evaluation(tmp_path):
    run = folder.open_run(tmp_path, "a", config=CONFIG)
    assert "nothing has been logged yet" in page(run.path)[0].text
    run.metrics.write_text('{"step": 0, "phase": "eval", "proxy": 0.5, "gold": 0.4, "spread_ratio": null}\n')
    parsed, _ = page(run.path)
    assert "Gold 0.40; one evaluation only" in parsed.text and "No sample grid has been written yet" in parsed.text
    rows = [{"step": 0, "phase": "eval", "proxy": 0.5, "kl": 0.0}] + [{"step": k, "phase": "train", "reward": k, "kl": k} for k in (1, 2)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "From training steps, because KL was not evaluated often enough" in page(run.path)[0].text


@pytest.mark.parametrize("key", ["steps", "seed", "gold_after", "gold_se_after", "kl", "dead_steps", "event_size", "train_seconds"])
def test_a_whole_number_larger_than_any_float_is_no_number(tmp_path, key):
    run = make_run(tmp_path)
    summary = {"status": "finished", "steps": 4, "gold_after": 0.5, "gold_se_after": 0.1, "dead_steps": 0}
    (run / "summary.json").write_text(json.dumps(summary | {key: 10**400}))
    assert "1" + "0" * 400 not in page(run)[0].text


def test_a_folder_with_nothing_or_with_rubbish(tmp_path):
    page(tmp_path)
    (tmp_path / "samples").mkdir()
    for name in ("config.yaml", "versions.json", "summary.json", "metrics.jsonl", "samples/prompts.json"):
        (tmp_path / name).write_bytes(b"{[ \xff")
    parsed, _ = page(tmp_path)
    assert "summary.json could not be read" in parsed.text and "config.yaml could not be read" in parsed.text
    with pytest.raises(UserError, match="takes the folder of a run"):
        build(tmp_path / "none")


def test_a_resumed_run_is_running_again(tmp_path):
    run = make_run(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    folder.write_json(run / "summary.json", {**summary, "status": "interrupted", "steps": 60, "gold_se_after": 0.0125, "lists": [1, 2]})
    parsed, _ = page(run)
    assert "Running, step 100" in parsed.text and "Interrupted" not in parsed.text
    assert "gold after 0.96 ± 0.013" in parsed.text and "gold se after" not in parsed.text and "lists 1, 2" in parsed.text


def test_few_evaluations_are_said_to_be_few(tmp_path):
    run = folder.open_run(tmp_path, "a", config=CONFIG)
    rows = [{"step": s, "phase": "eval", "proxy": 0.2 + s, "gold": -0.27 - s / 1000} for s in (0, 4)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Gold −0.2700 → −0.2740; too few evaluations to tell" in page(run.path)[0].text


def test_a_damaged_picture_is_left_out_and_said(tmp_path):
    run = make_run(tmp_path)
    half = run / "samples" / "step_000040.png"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (run / "samples" / "real.png").write_bytes(b"")
    parsed, _ = page(run)
    assert len(parsed.named("img", "frame")) == 5
    assert "step_000040.png could not be read" in parsed.text and "real.png could not be read" in parsed.text


@pytest.mark.parametrize(("side", "kind", "width"), [(8, "png", 27), (700, "webp", 1400)])
def test_videos_move_on_the_page(tmp_path, side, kind, width):
    run = folder.open_run(tmp_path, "a", config=CONFIG)
    run.write_prompts(["a"], [0, 1, 2])
    run.write_samples(0, torch.rand(1, 3, 4, 1, side, side))
    (frame,) = page(run.path)[0].named("img", "frame")
    head, data = frame["src"].split(",")
    assert head == f"data:image/{kind};base64" and int(frame["width"]) == width
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.n_frames == 4 and shown.info["loop"] == 0


def test_videos_are_named(tmp_path):
    run = folder.open_run(tmp_path, "a", config=CONFIG)
    for name in ("step_000000_0.mp4", "step_000010_0.mp4"):
        (run.samples / name).write_bytes(b"")
    assert "samples are videos: 2 files" in page(run.path)[0].text


def test_a_page_leads_to_the_run_in_its_trackers(tmp_path):
    runs = [make_run(tmp_path, name=name) for name in ("a", "b")]
    evil = {"evil": "javascript:alert(1)", "odd": 'https://x" onclick="y', "none": None}
    (runs[0] / "trackers.json").write_text(json.dumps({"wandb": "https://there/runs/1", **evil}))
    links = page(runs[0])[0].named("a")
    assert [(one["href"], one["target"], one["rel"]) for one in links] == [("https://there/runs/1", "_blank", "noreferrer")]
    assert [one["href"] for one in Page(comparison([read(run) for run in runs])).named("a")] == ["https://there/runs/1"]
    assert page(runs[1])[0].named("a") == []


def test_what_users_write_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&"
    run = folder.open_run(tmp_path, "a", config={**CONFIG, "rewards": {evil: {"use": "x"}}, "note": evil})
    run.write_prompts([evil, "b"], [0, 1, 2])
    run.write_samples(0, torch.rand(2, 3, 3, 8, 8))
    rows = [{"step": s, "phase": "eval", evil: s / 2, "kl": s} for s in (0, 1)] + [
        {"step": 1, "phase": "train", "reward": 1.0, "reward/a": 1, f"reward/{evil}": 2}
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.write_json(run.summary, {"status": evil, evil: evil})
    parsed, text = page(run.path)
    assert text.count("<script>") == 1 and len(parsed.named("script")) == 2
    assert evil in parsed.named("li")[0]["title"] and board(parsed)["prompts"][0] == evil


def board(parsed):
    """What the page's script knows of the cells of its grids."""
    return json.loads(parsed.scripts["board"])


def test_scores_stand_under_their_samples(tmp_path):
    run = make_run(tmp_path)
    opened = folder.RunFolder(run, None, ())
    table = torch.arange(80.0, dtype=torch.float64).view(10, 8) / 100
    opened.write_scores(100, {"proxy": table, "gold": 1 - table, "extra": torch.full((10, 8), torch.nan)})
    known = board(page(run)[0])
    assert (known["rows"], known["columns"], known["first"]) == (10, 8, "gold") and list(known["scores"]) == ["100"]
    assert known["names"] == ["gold", "proxy", "extra"] and known["scores"]["100"].keys() == {
        *known["names"]
    }  # judges, rewards, and whatever else
    assert known["scores"]["100"]["proxy"][9][7] == "0.79" and known["scores"]["100"]["gold"][9][7] == "0.21"
    assert known["scores"]["100"]["extra"][0][0] == ""
    assert (known["width"], known["height"], known["gap"]) == (9, 9, 1)  # 8 pixels, and a gap of one
    assert "Below each sample: gold." in page(run)[0].text


@pytest.mark.parametrize(
    "written", ["[1, 2]", '{"gold": 3}', '{"gold": ["x"]}', '{"gold": [[{}, true, 1e999, "a"]]}', "{[", '{"gold": [[], [1]]}']
)
def test_scores_of_another_form_are_no_scores(tmp_path, written):
    run = make_run(tmp_path)
    (run / "samples" / "step_000100.json").write_text(written)
    known = board(page(run)[0])
    assert all(isinstance(cell, str) for tables in known["scores"].values() for rows in tables.values() for row in rows for cell in row)


def test_a_step_is_a_whole_number_on_its_axis():
    drawn = draw(Plot([Series("a", [(0, 1.0), (4, 2.0)])], "step", "a"))
    marks = re.findall(r'text-anchor="middle">([^<]*)<', drawn)
    assert marks == ["0", "1", "2", "3", "4"]
    drawn = draw(Plot([Series("a", [(2, 1.0), (4, 2.0)])], "step", "a"))
    assert [float(mark) for mark in re.findall(r'text-anchor="middle">([^<]*)<', drawn)] == [2, 3, 4]


def test_large_grids_are_packed(tmp_path):
    run = folder.open_run(tmp_path, "a", config=CONFIG)
    run.write_prompts(["a lighthouse at dusk, seen from the sea, in the manner of an old engraving"] * 4, [1, 2])
    run.write_samples(0, torch.rand(4, 2, 3, 512, 512))
    parsed, _ = page(run.path)
    (frame,) = parsed.named("img", "frame")
    assert frame["src"].startswith("data:image/webp") and int(frame["height"]) == 1400
    assert "long" in parsed.named("ol")[0]["class"] and parsed.named("div", "pixelated") == []


def test_results_of_benchmarks_are_on_the_page(tmp_path):
    run = make_run(tmp_path)
    interval = {"value": 0.875, "low": 0.8, "high": 0.95}
    folder.write_json(run / "evaluations" / "pope" / "results.json", {"values": {"f1_score": interval, "odd": {**interval, "low": None}}})
    folder.write_json(run / "evaluations" / "torn" / "results.json", {"values": {"f1": 3}})
    parsed, _ = page(run)
    assert "Benchmarks" in parsed.text and "pope f1 score 0.88 (0.80 to 0.95)" in parsed.text and "odd" not in parsed.text
    assert "evaluations/torn/results.json could not be read" in parsed.text


def with_pixels(run, now: float):
    """The log with brightness of the first two evaluations as it was, and then as it is ``now``; two deviations are 0.1."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["phase"] == "eval":
            value = 0.3 if row["step"] < EVALS[2] else now
            row |= {"pixels/brightness": value, "pixels/brightness_se": 0.05 / 80**0.5, "pixels/samples": 80.0}
            row |= {"pixels/edges": 0.2, "pixels/edges_se": 0.001, "pixels/high_frequency": None, "pixels/high_frequency_se": None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_pixels_that_moved_are_said_at_the_top(tmp_path):
    parsed, _ = page(with_pixels(make_run(tmp_path), 0.1))
    assert "brightness fell by 4.0 deviations since step 40; no judge fell" in parsed.text
    assert "Brightness fell from 0.3 to 0.1, by 4.0 deviations of the base's samples." in parsed.text
    assert "Look at the samples from step 40 on" in parsed.text and "no over-optimisation seen" not in parsed.text
    assert [word for word in parsed.words if word in ("Within-class spread", "Pixels of the samples", "Training reward")] == [
        "Within-class spread", "Pixels of the samples", "Training reward",
    ]  # fmt: skip
    assert "0.30 → 0.10 (−4.0)" in parsed.text and "high frequency" not in parsed.text


def test_pixels_that_stay_are_shown_and_no_alarm(tmp_path):
    parsed, _ = page(with_pixels(make_run(tmp_path), 0.31))
    assert "no over-optimisation seen" in parsed.text and "Pixels moved" not in parsed.text
    assert "0.30 → 0.31 (+0.2)" in parsed.text and "edges" in parsed.text


@pytest.mark.parametrize("middle", [-0.12897, 0.9999, 1234.5, 3.1e-4])
def test_ticks_of_numbers_that_are_nearly_alike_are_told_apart(middle):
    line = [(0.0, middle), (1e-4, middle * (1 + 2e-5)), (3e-4, middle * (1 + 1e-4))]
    svg = draw(Plot([Series("red", line, marks=True)], alt="", x_word="KL", steps=False))
    labels = re.findall(r'text-anchor="end">([^<]+)</text>', svg)[:-1]
    assert len(set(labels)) == len(labels) >= 2 and max(map(len, labels)) <= 8 and "-" not in "".join(labels), labels
    assert all("e" not in label for label in labels) or abs(middle) < 1e-3
