"""REFUEL: REBEL for conversations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.needs import SEGMENT
from mmalign.objectives import ratios
from mmalign.objectives.parts import held, live
from mmalign.objectives.sentences import reward_gaps
from mmalign.types import Method, Steps


def refuel(*, eta: Positive = 1.0) -> Method:
    """REBEL on one turn of a conversation, with the rewards of the two futures that it led to.

    Two rows share a conversation up to a turn, answer it differently, and are played to the end. With h the difference of their
    log-ratios to the sampling policy over the steps of that turn, and R the reward of each whole conversation::

        loss = mean over pairs of  (h / eta - (R_1 - R_2))^2

    Args:
        eta: nats for a unit of reward. REFUEL's own recipe has 1e3.

    Paper: Regressing the Relative Future: Efficient Policy Optimization for Multi-turn RLHF, arXiv 2410.04612, algorithm 1.

    Deviations: the turn that counts is the one with the smallest number of a row's ``segment`` (0: no turn of the policy's): turns
    before it are context, outside of the mask, as ``policy.turns.parting`` leaves them (with ``policy.segments: turn``).

    Dialects:
    - REFUEL: eta=1000.0: its README's recipe; 1 is its code's default.
    """

    def first_turn(steps: Steps) -> Tensor:
        segment = held(steps, SEGMENT)
        number = torch.where(steps.mask & (segment > 0), segment, torch.inf)
        return live(ratios.per_step(steps), number == number.amin(1, keepdim=True).nan_to_num(posinf=-1.0))

    score = reward_gaps.row_ratio(first_turn, also=frozenset({SEGMENT}))
    return reward_gaps.reward_gaps(score=score, value=partial(reward_gaps.regressed, eta=eta))
