"""How much each step counts in the score of its row: ``Steps -> [B, T]``, without gradient, 0 in dead cells."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import CHANGED, PHRASE, SEGMENT, refs
from mmalign.objectives.parts import Part, held, live, under
from mmalign.types import Need, Steps, UserError


def _fact(steps: Steps, need: Need) -> Tensor:
    return live(held(steps, need), steps.mask)


def changed(factor: float) -> Part:
    """``factor`` for steps that the other row of the pair has not, or that are marked as wrong, 0 for what is wrong in its better row, 1
    for the others.

    factor: 0 or more.

    Errors: UserError for a negative factor.
    """
    if factor < 0:
        raise UserError(f"gamma: got {factor}, takes 0 or more")

    def of(steps: Steps) -> Tensor:
        fact = _fact(steps, CHANGED)
        return live(torch.where(fact > 0, float(factor), (fact == 0).double()), steps.mask)

    return Part(of, frozenset({CHANGED}))


def phrases() -> Part:
    """1 for steps of a phrase in which the rows of a pair differ, 0 for the others."""
    return Part(lambda steps: (_fact(steps, PHRASE) > 0).double(), frozenset({PHRASE}))


def segment(number: int) -> Part:
    """1 for steps of the segment of that number, 0 for the others.

    number: of the segment.
    """
    return Part(lambda steps: (_fact(steps, SEGMENT) == number).double(), frozenset({SEGMENT}))


def position(steps: Steps) -> Tensor:
    """Number of each live step in its row, from 0, ``[B, T]``."""
    return live(steps.mask.cumsum(1) - 1, steps.mask).double()


def beyond_shorter(factor: float) -> Part:
    """1 for the first steps of a row, as many as the shorter row of its pair has, ``factor`` for those after them.

    factor: 0 to 1.
    """
    if not 0 <= factor <= 1:
        raise UserError(f"alpha: got {factor}, takes 0 to 1")

    def of(steps: Steps) -> Tensor:
        length = steps.mask.sum(1, keepdim=True)
        shorter = torch.minimum(length[0::2], length[1::2]).repeat_interleave(2, 0)
        return live(1 + (factor - 1) * (position(steps) >= shorter).double(), steps.mask)

    return Part(of, unit="pair")


def discounted(factor: float) -> Part:
    """``factor ** t`` for the t-th live step of a row, from 0.

    factor: above 0, to 1.
    """
    if not 0 < factor <= 1:
        raise UserError(f"gamma: got {factor}, takes above 0 to 1")
    return Part(lambda steps: live(factor ** position(steps), steps.mask))


def token_rewards(steps: Steps) -> Tensor:
    """``sigmoid(log ref(good) - log ref(bad)) - 1/2``, ``[B, T]`` in -0.5..0.5: what ``ref`` thinks of a step, by two prompts (T-REG)."""
    good, bad = (held(under(steps, name), refs("ref")) for name in ("good", "bad"))
    return live(torch.sigmoid(live(good - bad, steps.mask)) - 0.5, steps.mask)
