"""How far a number moved, and by when: by hand, and along a curve whose time is known."""

from __future__ import annotations

import math

import pytest

from mmalign.evaluation import drift
from mmalign.types import UserError


def test_a_rise_and_a_fall_by_hand():
    rise = drift([0, 5, 10, 40], [0.25, 0.5, 0.74, 0.75], [0.03, 0.1, 0.1, 0.04])
    assert (rise.start, rise.end, rise.magnitude, rise.time) == (0.25, 0.75, 0.5, 10)
    assert rise.error == pytest.approx(0.05)
    fall = drift([0, 5, 10, 40], [0.75, 0.5, 0.26, 0.25])
    assert (fall.magnitude, fall.time) == (-0.5, 10) and math.isnan(fall.error)
    assert drift([0, 5, 10, 40], [0.75, 0.5, 0.26, 0.25], share=0.5).time == 5
    assert drift([0, 5, 10, 40], [0.75, 0.5, 0.26, 0.25], share=1.0).time == 40


@pytest.mark.parametrize("rate", [0.05, 0.2, -0.1])
def test_the_time_of_a_decay_is_the_logarithm_that_it_should_be(rate):
    steps = list(range(500))
    values = [math.copysign(1 - math.exp(-abs(rate) * step), rate) for step in steps]
    found = drift(steps, values)
    assert found.time == math.ceil(math.log(20) / abs(rate)) and found.magnitude == pytest.approx(math.copysign(1, rate))


def test_beyond_the_end_and_back_is_reached_where_it_first_was():
    assert drift([0, 1, 2, 3], [0.0, 2.0, 0.5, 1.0]).time == 1
    assert drift([0, 1, 2, 3], [0.0, -2.0, 0.5, 1.0]).time == 3  # the other way is no drift


def test_what_is_missing_is_left_out_and_nothing_moved_has_no_time():
    partly = drift([0, 1, 2, 3, 4], [math.nan, 0.0, math.nan, 1.0, math.nan])
    assert (partly.start, partly.end, partly.magnitude, partly.time) == (0.0, 1.0, 1.0, 3)
    still = drift([0, 1, 2], [0.5, 0.9, 0.5])
    assert still.magnitude == 0 and math.isnan(still.time)
    for short in ([], [0.5], [math.nan]):
        alone = drift(list(range(len(short))), short)
        assert math.isnan(alone.magnitude) and math.isnan(alone.time)


def test_mistakes_are_lines():
    with pytest.raises(UserError, match="drift: got 2 steps, 1 values and 2 errors, takes one of each"):
        drift([0, 1], [0.0])
    with pytest.raises(UserError, match=r"drift.steps: got \[1, 1\], takes increasing ones"):
        drift([1, 1], [0.0, 1.0])
