"""Kahneman-Tversky Optimization."""

from __future__ import annotations

from typing import Literal

import torch

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import weights
from mmalign.objectives.sentences.rowwise import rowwise
from mmalign.objectives.terms import baselines
from mmalign.types import Method


def kto(
    *,
    beta: Positive = 0.1,
    desirable: NotNegative = 1.0,
    undesirable: NotNegative = 1.0,
    baseline: Literal["mismatched", "batch", "zero"] = "mismatched",
) -> Method:
    """Thumbs up or down on single rows: no pairs. What counts is how far a row is ahead of what the policy gains on average.

    With ``lr = log pi - log ref`` of the whole row, and z a baseline without gradient::

        loss = mean over rows of  w_D (1 - sigmoid(beta (lr - z)))  for a good row,  w_U (1 - sigmoid(beta (z - lr)))  for a bad one

    Args:
        beta: how much a nat counts.
        desirable, undesirable: w_D and w_U; the paper keeps ``w_D n_D / (w_U n_U)`` in 1 to 4/3 where thumbs are unbalanced.
        baseline: ``mismatched``, ``max(0, mean lr)`` of the rows' outputs under other rows' prompts, which estimates the KL to the
            reference from above 0; ``batch``, the same of the rows themselves, which costs no further pass; ``zero``, none.

    A soft label p counts ``p`` good and ``1 - p`` bad. On tables of bounds every noise draw is a row of its own, which is Diffusion-KTO
    (arXiv 2404.04465) with ``baseline="batch"``: its utility's reference point is estimated on the batch.

    Paper: KTO: Model Alignment as Prospect Theoretic Optimization, arXiv 2402.01306, eq. 8.

    Deviations: z is the mean over the whole update, whatever its micro-batches and processes; the paper's code and TRL take it over a
    micro-batch, so that their loss depends on its size, and TRL averages the means of processes.

    Dialects:
    - TRL 1.16: beta=0.1, baseline="mismatched": outputs meet the next row's prompt; needs more than one row to a device.
    - HALOs: beta=0.1, baseline="mismatched": the same, with sums and counts gathered before they are divided.

    Examples:
        >>> method = mm.methods.kto()
        >>> sorted(map(str, method.needs)), sorted(map(str, method.survey_needs))
        (['refs:ref'], ['contrast:mismatched'])
    """
    return rowwise(
        good=lambda ratio, z: desirable * torch.sigmoid(beta * (z - ratio)),
        bad=lambda ratio, z: undesirable * torch.sigmoid(beta * (ratio - z)),
        baseline=baselines.named(baseline),
        weigh=weights.sequence_mean,
    )
