"""When the pixels of a run's samples count as moved: by hand, and how often chance looks like it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mmalign.runs.pixels import curves, in_words, shifts


def evals(*values: float | None, deviation: float = 0.1, samples: int = 64, **more: Any) -> list[dict[str, Any]]:
    error = deviation / math.sqrt(samples)
    return [
        {"step": 10 * n, "pixels/brightness": value, "pixels/brightness_se": error, "pixels/samples": samples, **more}
        for n, value in enumerate(values)
    ]


def test_what_moves_far_is_dated_by_where_it_stayed() -> None:
    (shift,) = shifts(evals(0.5, 0.1, 0.48, 0.28, 0.2))
    assert (shift.name, shift.step, shift.before, shift.now) == ("brightness", 30, 0.5, 0.2)
    assert (
        shift.distance == pytest.approx(-3)
        and in_words(shift) == "brightness fell from 0.5 to 0.2, by 3.0 deviations of the base's samples"
    )


def test_what_heals_or_moves_little_is_none() -> None:
    assert shifts(evals(0.5, 0.1, 0.45)) == []
    assert shifts(evals(0.5, 0.31)) == [] and shifts(evals(0.5)) == [] and shifts([]) == []


def test_few_samples_say_nothing() -> None:
    assert shifts(evals(0.5, 0.2, samples=7)) == []
    assert len(shifts(evals(0.5, 0.2, samples=8))) == 1
    wide = evals(0.5, 0.25, samples=8)
    wide[1]["pixels/brightness_se"] *= 2
    assert shifts(wide) == []  # 2.5 deviations, which is 3.2 standard errors of the difference
    rows = evals(0.5, 0.1, samples=64)
    rows[1]["pixels/brightness_missing"] = 57.0
    assert shifts(rows) == []


def test_a_base_without_deviation_moves_by_a_thousandth() -> None:
    assert shifts(evals(0.5, 0.5 + 9e-4, deviation=0.0)) == []
    (shift,) = shifts(evals(0.5, 0.6, deviation=0.0))
    assert shift.distance == pytest.approx(100)


def test_missing_numbers_are_left_out() -> None:
    rows = [*evals(0.5, None, 0.2), {"step": 30, "gold": 1.0}]
    assert [mean.step for mean in curves(rows)["brightness"]] == [0, 20] and shifts(rows) == []
    assert shifts(evals(0.5, math.nan)) == [] and set(curves(rows)) == {"brightness"}


def test_the_farthest_is_first() -> None:
    rows = evals(0.5, 0.2)
    for row, value in zip(rows, (1.0, 9.0), strict=True):
        row |= {"pixels/edges": value, "pixels/edges_se": 0.1 / 8}
    assert [shift.name for shift in shifts(rows)] == ["edges", "brightness"]


@pytest.mark.parametrize("samples", [8, 16, 64])
def test_chance_hardly_ever_looks_like_it(samples: int) -> None:
    """Other samples of the same model, of a skewed distribution; a run has the same seeds, which makes it less."""
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.8, (4000, 2, samples))
    false = 0
    for base, now in values:
        rows = [
            {"step": n, "pixels/edges": float(v.mean()), "pixels/edges_se": float(v.std(ddof=1) / samples**0.5), "pixels/samples": samples}
            for n, v in enumerate((base, now))
        ]
        false += bool(shifts(rows))
    assert false <= 4000 / 200
