"""Masks of 1 everywhere, and no price on them: TDPO, the sign of whose divergences is the authors'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.objectives.terms import token_level
from mmalign.types import UserError
from tests.oracles.tables import table


def test_whole_masks_are_tdpo() -> None:
    found = []
    for method in (mm.methods.sparsepo(), mm.methods.tdpo1()):
        at = table("token", 3)
        steps = at.steps()
        ones = torch.ones_like(steps.log_probs)
        steps = replace(steps, terms={**steps.terms, "reward_mask": ones, "kl_mask": ones})
        loss = (method.weigh(steps.mask) * method.loss(steps, method.signal(at.feedback())).values).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, at.leaf)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def test_a_better_row_may_leave_the_reference_and_a_worse_one_pays() -> None:
    at, method = table("token", 3), mm.methods.sparsepo()
    signal = method.signal(at.feedback())
    steps = replace(at.steps(), terms={name: torch.ones_like(at.log_probs) for name in ("reward_mask", "kl_mask")})
    base = method.loss(steps, signal).values[0, 0]
    for row, sign in ((0, -1.0), (1, 1.0)):  # the first of pair 0 is the better one
        more = steps.reverse_kls["ref"].detach().clone()
        more[row, 0] += 0.5
        assert (method.loss(replace(steps, reverse_kls={"ref": more}), signal).values[0, 0] - base).sign() == sign


def test_masks_of_activations_are_even_over_a_row_and_cut_at_its_mean() -> None:
    steps = table("token", 3).steps()
    a = torch.tensor([1.0, 2.0, 99.0, 4.0, 5.0], dtype=torch.float64)  # the third is dead: mean 3, spread sqrt(2.5)
    rows = {0: a, 1: a * 1000 + 7, 2: torch.full_like(a, 0.1)}
    steps = replace(steps, terms={"activation": torch.stack([rows.get(row, a) for row in range(len(steps.mask))])})
    steps.mask[:3] = torch.tensor([True, True, False, True, True])
    masks = token_level.active(steps)
    expected = torch.tensor([0, 0, 0, 1, 2], dtype=torch.float64) / 2.5**0.5
    torch.testing.assert_close(masks[:3], torch.stack([expected, expected, steps.mask[2].double()]), rtol=1e-12, atol=0)


def test_what_masks_cannot_be() -> None:
    with pytest.raises(UserError, match="masks: got 'heads', takes 'learned' or 'activations'"):
        mm.methods.sparsepo(masks="heads")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"kl_sparsity: got 0\.1 beside masks='activations', which nothing trains; takes 0"):
        mm.methods.sparsepo(masks="activations", kl_sparsity=0.1)
