from __future__ import annotations

import pytest
import torch

from mmalign.objectives import margins
from mmalign.types import Steps, UserError

NAN = float("nan")


def steps(**changes):
    log_probs = torch.tensor([[1.0, 2.0, NAN], [0.5, 0.0, 3.0], [1.0, 1.0, 1.0], [NAN, NAN, NAN]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    given = {"log_probs": log_probs, "mask": mask, "refs": {"ref": torch.full((4, 3), 0.5).double()}, "event_size": 4, **changes}
    return Steps(**given)


def test_by_hand():
    table = steps()
    assert margins.total(table).tolist() == [[2.0 - 2.0], [0.0]]  # (.5 + 1.5) - (0 - .5 + 2.5); a pair with an empty row is 0
    assert margins.per_step(table).squeeze(1).tolist() == pytest.approx([1.0 - 2.0 / 3, 0.0])
    assert margins.apart(table).tolist() == [[0.5, 2.0, 0.0], [0.0, 0.0, 0.0]]  # a step that one row alone has is 0
    assert margins.apart_per_scalar(table).tolist() == [[0.125, 0.5, 0.0], [0.0, 0.0, 0.0]]
    table = steps(refs={"ref": torch.zeros(4, 3).double()})
    assert margins.total(table).tolist() == [[-0.5], [0.0]] and margins.per_scalar(table).tolist() == [[-0.125], [0.0]]


def test_an_error_is_twice_the_bound():
    table = steps()
    assert torch.equal(margins.errors(error="sum", half=True).of(table), margins.apart(table))
    assert torch.equal(margins.errors(error="mean", half=False).of(table), 2 * margins.apart(table) / 4)
    with pytest.raises(UserError, match="'mean' or 'sum'"):
        margins.errors(error="median", half=True)


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
    torch.testing.assert_close(margins.by_noise(margins.named("apart")).of(of_velocity), margins.apart(of_noise))


def test_mistakes():
    with pytest.raises(UserError, match="takes 'ref'"):
        margins.total(steps(refs={}))
    with pytest.raises(UserError, match="takes noise"):
        margins.by_noise(margins.named("apart")).of(steps())
    with pytest.raises(UserError, match="'mean', takes one of total"):
        margins.named("mean")
