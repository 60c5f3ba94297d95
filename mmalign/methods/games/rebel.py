"""REBEL: regression to relative rewards."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import Positive
from mmalign.objectives.sentences import reward_gaps
from mmalign.types import Method


def rebel(*, eta: Positive = 1.0) -> Method:
    """Two answers to one prompt: the difference of their log-ratios to the sampling policy is to be eta times that of their rewards.

    With ``h = [log pi - log pi_old](row 1) - [log pi - log pi_old](row 2)``, sums over steps::

        loss = mean over pairs of  (h / eta - (r_1 - r_2))^2

    Args:
        eta: nats for a unit of reward: the step size. A perfect fit is the policy ``pi_old exp(eta r) / Z``.

    Paper: REBEL: Reinforcement Learning via Regressing Relative Rewards, arXiv 2404.16767, algorithm 1.

    Deviations: several pairs of a group are the recipe's choice; the online recipe takes the best and the worst row. A tie is
    regressed to 0.

    Dialects:
    - REBEL: eta=1.0: its code minimises eta^2 times this; its large-batch script has 1e6.
    """
    return reward_gaps.reward_gaps(score=reward_gaps.row_ratio(), value=partial(reward_gaps.regressed, eta=eta))
