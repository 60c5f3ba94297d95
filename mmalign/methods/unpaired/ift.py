"""Intuitive Fine-Tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.arguments.ranges import Proportion
from mmalign.needs import contrast
from mmalign.objectives import weights
from mmalign.objectives.feedback import comparisons, returns
from mmalign.objectives.parts import live, refuse_kind, under
from mmalign.types import Feedback, Loss, Method, Steps, UserError


def ift(*, gamma: Proportion = 0.95) -> Method:
    """Supervised learning of good rows that is shown its own guesses, and where a word counts by what goes wrong after it.

    The model reads each word's embedding mixed with that of its own likeliest word (the contrast ``blended``). With ``l_t`` minus the
    log-probability of word t read so, and ``c_t = sum_{s >= t} gamma^(s - t) l_s``::

        loss = mean over good rows of  sum_t c_t l_t / sum_t c_t

    Args:
        gamma: how far ahead a word is blamed, 0 to 1; 0 counts each word by its own loss.

    Good rows are those with thumbs up, the better ones of pairs, or those above their group's mean. The share of the model's own words
    is the policy's: ``contrasts: {blended: 0.2}``.

    Paper: Intuitive Fine-Tuning: Towards Simplifying Alignment into a Single Process, arXiv 2405.11870.

    Deviations: share, gamma and the weights c are those of the authors' code (``propagation_type: loss, side: left, norm: L1``), where
    the gradient goes through c too; it looks words up in a frozen copy of the first embeddings, here they are the policy's own.
    """
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma: got {gamma}, takes 0 to 1")

    def signal(feedback: Feedback) -> Tensor:
        return (comparisons.labels(feedback) > 0.5).double()[:, None]

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, frozenset({"token"}))
        cost = live(-under(steps, "blended").log_probs, steps.mask)
        later = returns.to_go(cost, steps.mask, gamma=gamma)
        whole = later.sum(1, keepdim=True)
        row = signal * (later * cost).sum(1, keepdim=True) / torch.where(whole > 0, whole, torch.ones_like(whole))
        rows = steps.mask.any(1).sum()
        return Loss(live(row.expand_as(steps.mask), steps.mask), {"cost": row.detach().sum() / rows.clamp(min=1)}, rows)

    return Method(
        signal=signal,
        loss=loss,
        weigh=weights.sequence_mean,
        needs=frozenset({contrast("blended")}),
        unit="row",
        kinds=frozenset({"token"}),
        keep=lambda feedback: signal(feedback)[:, 0] > 0,
    )
