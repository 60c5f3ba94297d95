"""Diffusion-DPO."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Half, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def diffusion_dpo(
    *,
    beta: Positive = 5000.0,
    error: Literal["mean", "sum"] = "mean",
    half: bool = True,
    link: Literal["logistic", "hinge", "squared"] = "logistic",
    smoothing: Half = 0.0,
) -> Method:
    """DPO through denoising errors: the model learns to denoise the better image better than the reference does.

    With l the error of one row at one noise level, ``mean (target - prediction)^2`` over the latent, better row w, worse row r,
    both with the same time and noise, under the policy and under ``ref``::

        loss = mean over pairs and noise draws of  -log sigmoid(-1/2 beta [(l_w - l_w^ref) - (l_r - l_r^ref)])

    Args:
        beta: the published 5000 is for a mean over the latent, and hides its size D; see below.
        error: ``mean`` or ``sum`` over the D numbers of a latent.
        half: the 1/2 of the formula; without it the inside is ``-beta [...]``.
        link: ``logistic``, ``hinge`` or ``squared`` of that inside, as ``dpo`` has them.
        smoothing: part of the labels taken to be flipped, 0 to below 0.5.

    Paper: Diffusion Model Alignment Using Direct Preference Optimization, arXiv 2311.12908, eq. 14.

    Deviations: the paper's ``T omega(lambda_t)`` is taken into beta, as its own code does (constant over times, half=True, beta
    5000). diffusers' script for StableDiffusion 1.5 has no 1/2 and beta 2500: ``half=False, beta=2500``, the same numbers;
    its SDXL script has the 1/2. Summed errors (SimpleTuner): ``error="sum"`` with a beta D times smaller, 5000 / 16,384 = 0.305 for
    StableDiffusion 1.5 at 512 pixels, or 0.153 with ``half=False``. Soft labels, ties and several noise draws of a pair are ours;
    draws are compared each by itself.
    """
    return pairwise(
        compared(scores.errors(error=error, half=half), links.smoothed(links.ahead(links.named(link, beta=beta)), flips=smoothing)),
        kinds=frozenset({"bound"}),
    )
