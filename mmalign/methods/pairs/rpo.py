"""Regularized Preference Optimization: DPO and supervised training."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def rpo(*, beta: Positive = 0.1, likelihood: NotNegative = 1.0, average: Literal["sequence", "token", "sum"] = "sequence") -> Method:
    """DPO that keeps better rows likely: the margin cannot grow by both rows falling.

    With m DPO's margin, better row w::

        loss = mean over pairs of  -log sigmoid(beta m) - likelihood * average of log pi_w

    Args:
        beta: as in ``dpo``.
        likelihood: weight of the better row's log-likelihood.
        average: ``sequence``, over a row's steps; ``token``, over the steps of all better rows of the update; ``sum``. For a bound the
            log-likelihood is minus half the squared denoising error of each draw.

    Paper: Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer, arXiv 2405.16436.

    Deviations: that paper sums, ``average="sum", likelihood=eta * beta``; the mean over a row's tokens with weight 1 is of Iterative
    Reasoning Preference Optimization (arXiv 2404.19733). Soft labels are ours.

    Dialects:
    - TRL 1.16: likelihood=1.0, average="token": ``loss_type=["sigmoid", "sft"]``: one mean over all tokens of the batch.
    - ms-swift 4.5: likelihood=1.0, average="token": ``rpo_alpha``.
    """
    return pairwise(
        compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        times(likelihood, regularisers.likelihood(average)),
        kinds=ANY,
    )
