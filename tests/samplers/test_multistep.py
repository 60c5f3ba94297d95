"""Steps of second order against the ODE's solution in closed form, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mmalign.samplers import kernels
from mmalign.samplers.multistep import Estimate, carried_on
from mmalign.types import Level
from mmalign.worlds import gaussian

WORLD = gaussian.one_gaussian([0.7, -1.3], [0.25, 2.0])
START = torch.tensor([[0.9, -0.4], [-1.7, 1.1]], dtype=torch.float64)


def path(name: str, count: int) -> Level:
    """Levels from much noise to little, neither pure noise nor clean data."""
    part = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    if name == "flow":
        sigma = 0.05 + 0.9 * part
        return Level(1 - sigma, sigma)
    if name == "preserving":
        angle = 0.1 + 1.3 * part
        return Level(angle.cos(), angle.sin())
    return Level(torch.ones_like(part), 0.1 + 5 * part**2)


def solution(x: torch.Tensor, t: Level, t_next: Level) -> torch.Tensor:
    """Of one Gaussian N(m, v): ``(x - a m) / sqrt(a^2 v + b^2)`` stays what it is."""
    size = [(level.signal**2 * WORLD.variances + level.noise**2).sqrt() for level in (t, t_next)]
    return t_next.signal * WORLD.means + size[1] / size[0] * (x - t.signal * WORLD.means)


def error(name: str, count: int, *, order: int, noisy: int | None = None) -> float:
    """How far so many steps end from the solution. noisy: a step in the middle that begins anew from where the solution goes."""
    levels = path(name, count)
    x, before = START, None
    for number, (t, t_next) in enumerate(pairwise(Level(a, b) for a, b in zip(*levels, strict=True))):
        prediction = gaussian.predict(WORLD, x, t)
        step = carried_on(prediction, x, t, t_next, before) if order == 2 else prediction
        began_anew = noisy is not None and number == count // noisy
        x = solution(x, t, t_next) if began_anew else kernels.ode()(step, x, t, t_next)[0]
        before = Estimate(prediction.clean, t, torch.full((len(x),), not began_anew))
    ends = [Level(levels.signal[at], levels.noise[at]) for at in (0, -1)]
    return float((x - solution(START, *ends)).abs().max())


@pytest.mark.parametrize("name", ["flow", "preserving", "exploding"])
@pytest.mark.parametrize(("order", "noisy"), [(1, None), (2, None), (2, 2)])
def test_half_the_step_is_half_the_error_or_a_quarter(name, order, noisy):
    """Also where a random step in the middle ends the history: one step of order 1 has an error of second order."""
    errors = [error(name, count, order=order, noisy=noisy) for count in (32, 64, 128, 256)]
    slopes = [float(torch.tensor(one / two).log2()) for one, two in pairwise(errors)]
    assert slopes == pytest.approx([order] * 3, abs=0.25) and slopes[-1] == pytest.approx(order, abs=0.1), slopes


def test_few_steps_from_pure_noise_to_clean_data_end_nearer():
    """Both ends are of order 1 there, since the distance in lambda is infinite."""
    x, pairs = START, [Level(1 - s, s) for s in torch.linspace(1, 0, 9, dtype=torch.float64)]
    ends = []
    for order in (1, 2):
        now, before = x, None
        for t, t_next in pairwise(pairs):
            prediction = gaussian.predict(WORLD, now, t)
            step = carried_on(prediction, now, t, t_next, before) if order == 2 else prediction
            assert (step is prediction) == (order == 1 or float(t.noise) >= 1 - 1 / 8 or float(t_next.noise) == 0)
            now, before = kernels.ode()(step, now, t, t_next)[0], Estimate(prediction.clean, t, torch.ones(2, dtype=torch.bool))
        ends.append(float((now - solution(x, pairs[0], pairs[-1])).abs().max()))
    assert ends[1] < ends[0] / 2, ends


def test_a_row_whose_step_had_noise_begins_again():
    t, t_next, earlier = (Level(torch.tensor(a).double(), torch.tensor(1 - a).double()) for a in (0.5, 0.6, 0.4))
    prediction = gaussian.predict(WORLD, START, t)
    both = carried_on(prediction, START, t, t_next, Estimate(prediction.clean - 1, earlier, torch.tensor([True, False])))
    assert not torch.equal(both.clean[0], prediction.clean[0]) and torch.equal(both.clean[1], prediction.clean[1])
    torch.testing.assert_close(t.signal * both.clean + t.noise * both.noise, START)
