"""Masks of 1 everywhere, and no price on them: TDPO, the sign of whose divergences is the authors'."""

from __future__ import annotations

from dataclasses import replace

import torch

import mmalign as mm
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
