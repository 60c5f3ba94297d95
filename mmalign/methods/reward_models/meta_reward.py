"""Reward models that learn from labelled pairs what still tells apart the answers of a policy that has moved away from them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import scores
from mmalign.objectives.parts import SCORES, Climb, live
from mmalign.objectives.sentences.pairwise import ordered, pairwise
from mmalign.objectives.terms import rated
from mmalign.objectives.terms.pairs import shared
from mmalign.types import Feedback, Method, Steps


def meta_reward(*, rate: NotNegative = 0.01) -> Method:
    """Bradley-Terry's loss where a step has led that tells pairs without a label further apart: MetaRM.

    Of an update's pairs some have a label, and others, of answers of the distribution that the reward is to hold for, have none (records
    of ``unlabelled``). With s the scores at parameters ``theta``::

        J(theta) = mean over pairs of  sigmoid(|s_1 - s_2|)           where there is no label, else 0
        theta' = theta + rate grad J(theta)
        loss = mean over pairs of  -p log sigmoid(s_w - s_l) - (1 - p) log sigmoid(s_l - s_w)   at theta'; theta follows its gradient there

    rate: of the step before the step; 0 is ``bradley_terry``. Both means are over all pairs of an update, with a label or without, so that
        fewer unlabelled ones are a shorter step.

    Paper: MetaRM: Shifted Distributions Alignment via Meta-Learning, arXiv 2405.00438, algorithm 1, and Secrets of RLHF Part II,
    arXiv 2401.06080, sec. 4 (both as recalled).

    Deviations: the gradient at theta' is applied to theta as it is, without the derivative of theta' by theta (first order); two answers of
    a prompt are compared, where the paper takes the mean over all twos of k. Of several scores, each is a reward by itself.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.meta_reward(), torch.ones(4, 1).bool()
        >>> steps = Steps(torch.tensor([[1.5], [0.5], [0.0], [2.0]]).double(), mask, kind="score")  # the second pair has no label
        >>> labels = Feedback(torch.zeros(4).double(), torch.tensor([0, 0, 1, 1]), pairs=torch.tensor([[0, 1], [2, 3]]),
        ...                   strength=torch.tensor([1.0, torch.nan]).double())
        >>> signal = method.signal(labels)
        >>> [(method.weigh(mask) * values).sum() for values in (method.loss(steps, signal).values, method.climb.of(steps, signal))]
        [tensor(0.1566, dtype=torch.float64), tensor(0.4404, dtype=torch.float64)]
    """
    method = pairwise(rated.ahead_by(0.0), kinds=SCORES, wins=rated.wins)

    def apart(steps: Steps, signal: Tensor) -> Tensor:
        order, _ = ordered(steps, signal)
        own = scores.policy().of(steps)
        far = torch.sigmoid((own[0::2] - own[1::2]).abs())
        silent = shared(steps) & (order.sign == 0)
        return live(live(far, silent).repeat_interleave(2, 0), steps.mask)

    def kept(feedback: Feedback) -> Tensor:
        """Rows of a pair, with a label or without."""
        rows = torch.zeros(len(feedback.rewards), dtype=torch.bool)
        if feedback.pairs is not None:
            rows[feedback.pairs.flatten()] = True
        return rows

    return replace(method, keep=kept, climb=Climb(apart, rate))
