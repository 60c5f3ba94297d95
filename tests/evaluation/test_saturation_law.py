"""The law of data: what was put in is found again, beside scipy's own fit, and what shows no plateau says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from mmalign.evaluation.saturation_law import saturation_law
from mmalign.types import UserError

COUNTS = [8, 16, 32, 64, 128, 256]


def test_a_noisy_plateau_is_fitted_as_scipy_fits_it() -> None:
    rng = np.random.default_rng(0)
    counts = COUNTS * 3
    scores = [0.7 - 0.5 * math.exp(-n / 40) + 0.02 * rng.standard_normal() for n in counts]
    law = saturation_law(counts, scores)
    (a, b, c), _ = curve_fit(lambda n, a, b, c: a - b * np.exp(-c * n), counts, scores, p0=(0.7, 0.5, 1 / 40))
    assert law.plateau == pytest.approx(a, rel=1e-4) and law.drop == pytest.approx(b, rel=1e-4) and law.rate == pytest.approx(c, rel=1e-3)
    assert law.enough == pytest.approx(math.log(20) / c, rel=1e-3) and law(law.enough) == pytest.approx(a - 0.05 * b, rel=1e-4)
    assert 0.9 < law.explained < 1 and law.points == 18


def test_what_shows_no_plateau_has_no_number_that_is_enough() -> None:
    assert math.isnan(saturation_law(COUNTS, [0.001 * n for n in COUNTS]).enough)  # a line
    assert math.isnan(saturation_law(COUNTS, [0.5 + 0.3 * math.exp(-n / 40) for n in COUNTS]).enough)  # more records are worse
    for counts, scores, line in (
        ([1, 2], [0.0, 1.0], r"got counts \[1\.0, 2\.0\], takes three"),
        ([1, 2, 3], [0.0], r"got 3 counts and 1"),
    ):
        with pytest.raises(UserError, match=line):
            saturation_law(counts, scores)
