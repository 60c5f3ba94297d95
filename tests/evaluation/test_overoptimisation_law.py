"""The law of over-optimisation: fitted to what it says itself, to noise, and to what fixes no law."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmalign.evaluation import overoptimisation_law
from mmalign.types import UserError


def of(kl, alpha, beta):
    d = np.sqrt(kl)
    return d * (alpha - beta * np.log(d))


def noisy(*, alpha=1.5, beta=0.6, runs=8, scale=0.05, most=40.0):
    """Checkpoints of several runs along a law, each run with an error of its own."""
    rng = np.random.default_rng(3)
    kl = np.tile(np.linspace(0.0, most, 11), runs)
    names = np.repeat(np.arange(runs), 11).tolist()
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(kl > 0, of(kl, alpha, beta) + scale * np.sqrt(kl) * np.repeat(rng.normal(size=runs), 11), 0.0)
    return kl.tolist(), gain.tolist(), names


def test_two_points_are_solved_by_hand():
    # d = 1: gain = alpha = 2; d = e: gain = e (2 - beta) = e  ->  beta = 1; the peak is at d = exp(2 - 1), KL e^2, gain e
    law = overoptimisation_law([1.0, math.e**2], [2.0, math.e], ["a", "b"])
    assert (law.alpha.value, law.beta.value, law.explained) == pytest.approx((2.0, 1.0, 1.0))
    assert (law.peak.value, law.best.value, law.furthest) == pytest.approx((math.e**2, math.e, math.e**2))
    assert law(1.0) == pytest.approx(2.0) and law(law.peak.value) == pytest.approx(law.best.value) and law(0.0) == 0.0
    assert (law.points, law.runs) == (2, 2)


def test_a_law_is_found_in_noise_and_its_intervals_hold_it():
    law = overoptimisation_law(*noisy())
    assert law.alpha.low < 1.5 < law.alpha.high and law.beta.low < 0.6 < law.beta.high and law.turns
    peak = math.exp(2 * (1.5 / 0.6 - 1))
    assert law.peak.low < peak < law.peak.high and law.explained > 0.95
    top = max(range(1, 400), key=lambda tenth: law(tenth / 10)) / 10
    assert top == pytest.approx(law.peak.value, abs=0.1)  # the peak is where its own curve is highest


def test_what_only_rises_does_not_turn():
    law = overoptimisation_law(*noisy(beta=-0.3))
    assert law.beta.value < 0 and math.isnan(law.peak.value) and math.isnan(law.best.value) and not law.turns
    assert not overoptimisation_law(*noisy(beta=0.6, most=5.0)).turns  # its peak is beyond what was measured


def test_one_run_has_no_interval_and_one_distance_no_law():
    kl, gain, _ = noisy(runs=1)
    alone = overoptimisation_law(kl, gain, ["a"] * len(kl))
    assert math.isfinite(alone.alpha.value) and math.isnan(alone.alpha.low) and not alone.turns
    same = overoptimisation_law([4.0, 4.0], [1.0, 2.0], ["a", "b"])
    assert math.isnan(same.alpha.value) and math.isnan(same.peak.value)
    assert math.isnan(overoptimisation_law([0.0], [0.0], ["a"]).alpha.value)


def test_missing_numbers_are_left_out_and_odd_ones_refused():
    kl, gain, runs = noisy()
    assert (
        overoptimisation_law([*kl, math.nan, 3.0], [*gain, 1.0, math.nan], [*runs, 0, 0]).alpha
        == overoptimisation_law(kl, gain, runs).alpha
    )
    with pytest.raises(UserError, match="got 1 KLs, 2 gains and 1 runs, takes one of each"):
        overoptimisation_law([1.0], [1.0, 2.0], ["a"])
    with pytest.raises(UserError, match="got a KL of -1, takes 0 or more"):
        overoptimisation_law([-1.0, 2.0], [1.0, 2.0], ["a", "a"])
