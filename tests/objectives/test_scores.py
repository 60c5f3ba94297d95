from __future__ import annotations

import pytest
import torch

from mmalign.needs import CHANGED, refs
from mmalign.objectives import scores
from mmalign.objectives.parts import Part
from mmalign.types import Steps, UserError

NAN = float("nan")


def steps(**changes):
    log_probs = torch.tensor([[1.0, 2.0, NAN], [0.5, 0.0, 3.0], [1.0, 1.0, 1.0], [NAN, NAN, NAN]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    fields = {"log_probs": log_probs, "mask": mask, "refs": {"ref": torch.full((4, 3), 0.5).double()}, "event_size": 4, **changes}
    return Steps(**fields)


def test_by_hand():
    table = steps()
    assert scores.ratio().of(table).squeeze(1).tolist() == [2.0, 2.0, 1.5, 0.0]  # .5 + 1.5; 0 - .5 + 2.5; a row without a step is 0
    assert scores.ratio("per_step").of(table).squeeze(1).tolist() == pytest.approx([1.0, 2.0 / 3, 0.5, 0.0])
    assert scores.ratio("per_scalar").of(table).squeeze(1).tolist() == [0.5, 0.5, 0.375, 0.0]
    assert scores.policy().of(table).squeeze(1).tolist() == [3.0, 3.5, 3.0, 0.0]


def test_draws_of_a_bound_stay_apart():
    table = steps(kind="bound")
    assert scores.ratio().of(table).tolist() == [[0.5, 1.5, 0.0], [0.0, -0.5, 2.5], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]
    assert torch.equal(scores.ratio("per_step").of(table), scores.ratio().of(table))
    assert torch.equal(scores.ratio("per_scalar").of(table), scores.ratio().of(table) / 4)


def test_shares():
    share = Part(lambda steps: torch.tensor([[3.0, 1.0, 0.0]] * 3 + [[0.0] * 3]).double(), frozenset({CHANGED}))
    assert scores.ratio(share=share).of(steps()).squeeze(1).tolist() == [3.0, -0.5, 2.0, 0.0]
    assert scores.policy("per_step", share=share).of(steps()).squeeze(1).tolist() == [1.25, 0.375, 1.0, 0.0]
    assert scores.ratio(share=share).needs == {refs("ref"), CHANGED}


def test_an_error_is_twice_the_bound():
    table = steps(kind="bound")
    assert torch.equal(scores.errors(error="sum", half=True).of(table), scores.ratio().of(table))
    assert torch.equal(scores.errors(error="mean", half=False).of(table), 2 * scores.ratio().of(table) / 4)
    with pytest.raises(UserError, match="'mean' or 'sum'"):
        scores.errors(error="median", half=True)


def test_noise_levels_turn_errors_of_velocities_into_errors_of_noise():
    """x = (1 - s) x0 + s eps; eps_hat = x + (1 - s) v_hat."""
    rng = torch.Generator().manual_seed(0)
    clean, noise, guess, ref = (torch.randn(2, 1, 5, generator=rng, dtype=torch.float64) for _ in range(4))
    level = torch.tensor([[0.3], [0.3]], dtype=torch.float64)
    x = (1 - level[..., None]) * clean + level[..., None] * noise

    def table(target, change):
        bound = [-0.5 * ((change(value) - target) ** 2).sum(-1) for value in (guess, ref)]
        return Steps(
            bound[0], torch.ones(2, 1, dtype=torch.bool), refs={"ref": bound[1]}, facts={"noise": level}, event_size=5, kind="bound"
        )

    of_velocity = table(noise - clean, lambda v: v)
    of_noise = table(noise, lambda v: x + (1 - level[..., None]) * v)
    torch.testing.assert_close(scores.by_noise(scores.ratio()).of(of_velocity), scores.ratio().of(of_noise))


def test_mistakes():
    with pytest.raises(UserError, match="takes 'ref'"):
        scores.ratio().of(steps(refs={}))
    with pytest.raises(UserError, match="takes 'noise'"):
        scores.by_noise(scores.ratio()).of(steps())
    with pytest.raises(UserError, match="'mean', takes one of total"):
        scores.ratio("mean")
