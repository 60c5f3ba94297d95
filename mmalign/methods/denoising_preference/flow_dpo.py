"""Flow-DPO."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Half, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def flow_dpo(
    *,
    beta: Positive = 2000.0,
    times: Literal["constant", "noise"] = "constant",
    error: Literal["mean", "sum"] = "mean",
    half: bool = True,
    smoothing: Half = 0.0,
) -> Method:
    """Diffusion-DPO on the velocity of a rectified flow.

    With l the error of one row at noise level s, ``mean (eps - x_0 - velocity)^2`` over the latent, better row w, worse row r, both
    with the same s and noise, under the policy and under ``ref``::

        loss = mean over pairs and noise draws of  -log sigmoid(-1/2 beta_s [(l_w - l_w^ref) - (l_r - l_r^ref)])

    Args:
        beta: for a mean over the latent; a sum takes one D times smaller.
        times: ``constant``, beta_s = beta; ``noise``, beta_s = beta (1 - s)^2, which makes errors of the velocity errors of the noise.
        error: ``mean`` or ``sum`` over the D numbers of a latent.
        half: the 1/2 of the formula; without it the inside is ``-beta_s [...]``.
        smoothing: part of the labels taken to be flipped, 0 to below 0.5.

    Paper: Improving Video Generation with Human Feedback, arXiv 2501.13918.

    Deviations: the derivation gives ``times="noise"``; the paper finds a constant better, and so does everybody's code. Beta differs:
    flow_grpo's online DPO has 100, Flow-Factory and verl-omni 2000, all with means and the 1/2. SimpleTuner sums, with a beta that
    it sets from the size of the margins. Soft labels, ties and several noise draws of a pair are ours.
    """
    score = scores.errors(error=error, half=half)
    return pairwise(
        compared(
            scores.by_noise(score) if times == "noise" else score,
            links.smoothed(links.ahead(links.named("logistic", beta=beta)), flips=smoothing),
        ),
        kinds=frozenset({"bound"}),
    )
