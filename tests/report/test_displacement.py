"""Likelihood displacement: an alarm where chosen outputs fall while the margin rises, beyond noise, and nowhere else."""

from __future__ import annotations

import json
import random

import pytest

from mmalign.report import build
from mmalign.report.displacement import displaced, figures, in_words
from mmalign.report.read import RunData


def rows(better, margin, *, count=40, noise=0.1):
    rng = random.Random(0)
    return [
        {"step": step, "better": better * step / count + rng.gauss(0, noise), "margin": margin * step / count + rng.gauss(0, noise)}
        for step in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("better", "margin", "alarm"), [(-2.0, 5.0, True), (2.0, 5.0, False), (-2.0, -5.0, False), (0.0, 5.0, False), (-2.0, 0.0, False)]
)
def test_it_takes_a_fall_and_a_rise(better, margin, alarm):
    assert (displaced(rows(better, margin)) is not None) == alarm


def test_noise_and_short_runs_raise_none():
    assert displaced(rows(-0.2, 5.0, noise=1.0)) is None
    assert displaced(rows(-2.0, 5.0, count=19)) is None and displaced(rows(-2.0, 5.0, count=20)) is not None
    assert displaced([]) is None and displaced([{"step": 1, "better": None, "margin": float("nan")}] * 40) is None


def test_what_is_said_are_the_ends():
    found = displaced(rows(-2.0, 5.0, noise=0.0))
    assert found.chosen_before == pytest.approx(-2 * 4.5 / 40) and found.margin_after == pytest.approx(5 * 36.5 / 40)
    assert in_words(found).startswith("chosen outputs went from −0.23" if "−" in in_words(found) else "chosen outputs went from -0.2")


def test_the_page_has_the_alarm_and_the_figures(tmp_path):
    measured = {"gradients/cosine": 0.9, "gradients/rule": 1.0, "gradients/chosen_change": -0.1, "gradients/rejected_change": -0.3}
    lines = [{**row, "phase": "train", "seconds": 1.0, "known": 1.0, **measured} for row in rows(-2.0, 5.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = build(tmp_path).read_text()
    assert "Likelihood displacement" in page and "what rose instead is in no pair" in page
    assert "foretold 100 % of the signs" in page and "Gradient entanglement" in page
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({**line, "better": 1.0}) + "\n" for line in lines))
    assert "Likelihood displacement" not in build(tmp_path).read_text()
    assert figures(RunData(tmp_path)) == []
