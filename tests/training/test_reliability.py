"""How far a pair method's probabilities may be believed: bins, calibration error and temperature by hand, and on a run's page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.report import build
from mmalign.report.read import read
from mmalign.runs.reliability import bins
from mmalign.training.evaluations.reliability import HOTTEST, reliability
from mmalign.types import Steps
from tests.policies.test_scorer import pairs, reader, settings


def drawn(true_temperature: float, count: int = 4000) -> torch.Tensor:
    """Gaps, and labels drawn at a temperature of them."""
    rng = torch.Generator().manual_seed(0)
    gap = 3 * torch.randn(count, generator=rng, dtype=torch.float64)
    label = (torch.rand(count, generator=rng, dtype=torch.float64) < torch.sigmoid(gap / true_temperature)).double()
    return torch.stack([gap, label], 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature: float) -> None:
    numbers = reliability(drawn(temperature), known=True)
    assert numbers["temperature"] == pytest.approx(temperature, rel=0.1)
    assert (numbers["ece"] < 0.03) == (temperature == 1.0)
    assert reliability(drawn(temperature), known=False)["ece"] < 0.03  # after it


def test_bins_and_error_are_those_of_straight_lines() -> None:
    compared = drawn(2.0, 200)
    compared[::7, 1] = 0.5
    numbers = reliability(compared, known=True)
    rows: dict[int, list[tuple[float, float]]] = {}
    for gap, label in compared.tolist():
        sure = 1 / (1 + math.exp(-abs(gap)))
        rows.setdefault(min(int((sure - 0.5) * 20), 9), []).append((sure, label if gap > 0 else 1 - label))
    error = 0.0
    for number, some in rows.items():
        predicted, observed = (sum(values) / len(some) for values in zip(*some, strict=True))
        wanted = {"count": len(some), "predicted": predicted, "observed": observed}
        assert {name: numbers[f"bins/{number}/{name}"] for name in wanted} == pytest.approx(wanted)
        error += len(some) / 200 * abs(predicted - observed)
    assert numbers["ece"] == pytest.approx(error)
    assert len([name for name in numbers if name.endswith("count")]) == len(rows)


def test_an_order_that_is_always_right_has_no_temperature() -> None:
    assert reliability(torch.tensor([[1.0, 1.0], [-2.0, 0.0]]).double(), known=True)["temperature"] == pytest.approx(1 / HOTTEST, rel=1e-3)


def test_nobody_ahead_is_half_right() -> None:
    numbers = reliability(torch.tensor([[0.0, 1.0], [0.0, 1.0]]).double(), known=False)
    assert numbers["ece"] == 0.0 and numbers["bins/0/observed"] == 0.5 and math.isnan(numbers["temperature"])


def test_what_a_method_compares_is_its_own_log_odds() -> None:
    scores = torch.tensor([[1.0], [0.5], [0.0], [2.0]]).double()
    steps = Steps(scores, torch.ones(4, 1, dtype=torch.bool), kind="score")
    signal = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]]).double()
    plain, ties = (method.loss(steps, signal).compared for method in (mm.methods.bradley_terry(), mm.methods.bradley_terry_ties(k=3.0)))
    torch.testing.assert_close(plain, torch.tensor([[0.5, 1.0], [-2.0, 0.5]]).double())
    up, down = math.exp(0.5), 1.0
    won = up / (up + 3 * down)
    tied = 8 * up * down / ((up + 3 * down) * (down + 3 * up))
    assert float(ties[0, 0].sigmoid()) == pytest.approx(won + tied / 2)
    silent = mm.methods.bradley_terry().loss(steps, signal * torch.tensor([[1.0], [1.0], [0.0], [0.0]]).double()).compared
    assert len(silent) == 1


@pytest.mark.parametrize("kind", ["bradley_terry", "dpo"])
def test_a_pair_method_has_a_diagram_of_its_held_out_records(kind: str, tmp_path: Path) -> None:
    given: dict[str, Any] = settings(tmp_path)
    if kind == "dpo":
        given["evaluation"] |= {"samples": 1, "prompts": ["abc"]}
        given["rewards"] = {"length": lambda outputs, prompts: [1.0] * len(outputs)}
    policy = mm.policies.scorer(reader()) if kind == "bradley_terry" else reader()
    run = mm.offline(policy, pairs()[::2], getattr(mm.methods, kind)(), **given)
    assert run.summary["held_out/ece_after"] <= 0.5 and run.summary["held_out/temperature_after"] > 0
    assert not any("bins" in name for name in run.summary)
    last = [row for row in read(run.path).evals if bins(row)][-1]
    assert sum(one.size for one in bins(last)) == len(pairs()[1::2])
    assert all(one.low <= one.observed <= one.high for one in bins(last))
    assert "Predicted against observed, held out" in run.report.path.read_text()
    if (
        kind == "bradley_terry"
    ):  # as a run is that was interrupted before its second evaluation: all scores are 0, and no temperature is best
        rows = (run.path / "metrics.jsonl").read_text().splitlines()
        (run.path / "metrics.jsonl").write_text(rows[0] + "\n")
        assert json.loads(rows[0])["held_out/temperature"] is None and "calibration error 0." in build(run.path).read_text()
