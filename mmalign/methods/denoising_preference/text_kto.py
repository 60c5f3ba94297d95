"""Text preference optimisation, KTO's form (TKTO)."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import scores, weights
from mmalign.objectives.sentences.rowwise import rowwise
from mmalign.objectives.terms import baselines, utilities
from mmalign.types import Method


def text_kto(
    *,
    utility: Literal["kahneman_tversky", "loss_averse", "risk_seeking"] = "kahneman_tversky",
    beta: Positive = 1000.0,
    undesirable: NotNegative = 1.0,
    baseline: Literal["batch", "zero"] = "batch",
    error: Literal["mean", "sum"] = "mean",
    half: bool = False,
) -> Method:
    """One image, two prompts: under its own it is a good image, and under one that does not fit a bad one, each for itself.

    With ``g(c) = l^ref(c) - l(c)`` the gain of one row at one noise level under a prompt, its own c and another one c', z the baseline::

        loss = mean over good rows and noise draws of  1 - U(beta (g(c) - z)) + w_U (1 - U(beta (z - g(c'))))

    Args:
        utility: U, as in ``diffusion_kto``.
        beta: for a mean over the latent of size D; a sum takes one D times smaller.
        undesirable: w_U, the weight of the other prompt.
        baseline: z is ``max(0, mean g(c))`` over the rows of the update (``batch``), or 0.
        error: ``mean`` or ``sum`` over the D numbers of a latent.
        half: g is half of that.

    Good rows, and the other prompt, are those of ``text_dpo``.

    **Where it goes.** Unlike ``text_dpo`` it holds each prompt in place by itself: with log-likelihoods in place of errors and z = 0 a
    gain rests where ``U'`` weighs the images of both prompts alike, which for the sigmoid is at 0 where they are as likely, and at
    the ends where they are not: what is told apart is told apart ever more (no point of rest, ever slower).

    Paper: Free Lunch Alignment of Text-to-Image Diffusion Models without Preference Image Pairs, arXiv 2509.25771 (TKTO).

    Deviations: z is of the rows under their own prompts, over the whole update, as ``diffusion_kto``'s is.
    """
    gain, score = utilities.named(utility), scores.errors(error=error, half=half)
    return rowwise(
        good=lambda g, z: 1 - gain(beta * (g - z)),
        bad=lambda g, z: undesirable * (1 - gain(beta * (z - g))),
        baseline=baselines.named(baseline, score),
        weigh=weights.sequence_mean,
        score=score,
        against="mismatched",
        kinds=frozenset({"bound"}),
    )
