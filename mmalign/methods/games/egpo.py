"""Extragradient Preference Optimization."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences import reward_gaps
from mmalign.types import Behavior, Feedback, Method, Move

HALF = Behavior("half", {"half": 1.0})
MOVES = (
    Move("start", {"current": 1.0}, every=2, moments=True),
    Move("half", {"current": 1.0}),
    Move("current", {"start": 1.0}, every=2, at=1, moments=True),
)


def egpo(*, beta: Positive = 0.1, scale: Positive = 1.0) -> Method:
    """Self-play that looks a step ahead: a first step against oneself, then the real one, from the same start, against where it led.

    Of every two training steps the first goes from ``start`` to ``half``; the second goes back to ``start``, Adam's moments with it, and
    is taken there with rows of ``half`` as opponents. With h the log-ratio to ``ref`` of a row, y and y' two of the policy's own rows,
    and ``u(y)`` the mean probability that y beats a row that ``half`` drew::

        loss = mean over pairs (y, y') of  ([h(y) - h(y')] - [u(y) - u(y')] / beta)^2

    Its gradient is that of a step of mirror ascent on ``E[u] - beta KL(pi || ref)``, whose equilibrium is the regularised game's.

    Args:
        beta: price of a nat of KL to ``ref``, in units of a probability to win.
        scale: reward units of a logit, where nobody compared rows and Bradley-Terry does.

    Paper: Extragradient Preference Optimization (EGPO): Beyond Last-Iterate Convergence for Nash Learning from Human Feedback, arXiv
    2503.08942.

    Deviations: the loss, the two half-steps, what is put back before the second, and beta are those of the authors' code
    (github.com/zhourunlong/EGPO); the paper's text was not at hand. Pairs are the policy's own rows; in their tables they are uniform, and
    their language models draw them at temperature 2 from the 10 likeliest tokens, those of the second step at ``half``. Half of each
    group's rows are opponents, so u is a mean over several; theirs is of one. After an odd number of steps the policy is a ``half``:
    evaluate after even ones; an ``ema`` averages both.
    """
    links.positive(beta=beta, scale=scale)

    def ahead(feedback: Feedback) -> Tensor:
        """``u [B]``, NaN for a row that met no opponent."""
        wins = comparisons.wins(feedback, scale=scale)
        met = ~wins.isnan() & comparisons.drawn(feedback, "half")[None, :] & ~feedback.rewards.isnan()[:, None]
        mean = torch.where(met, wins, 0.0).sum(1) / met.sum(1).clamp(min=1)
        return torch.where(met.any(1), mean, torch.nan)

    def value(log_ratios: Tensor, gap: Tensor) -> Tensor:
        return (log_ratios[:, :1] - log_ratios[:, 1:] - gap / beta) ** 2

    return replace(
        reward_gaps.reward_gaps(score=scores.ratio("total"), value=value, rewards=Reading(ahead)),
        behaviors=(HALF,),
        moves=MOVES,
        pairs=comparisons.two_by_two,
    )
