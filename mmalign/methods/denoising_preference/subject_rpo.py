"""Reward preference optimisation for subjects."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def subject_rpo(
    *,
    beta: Positive = 1.0,
    similarity: NotNegative = 1.0,
    error: Literal["mean", "sum"] = "mean",
    half: bool = False,
) -> Method:
    """Pictures of a subject are learned, and a preference holds the rest: for the picture, or for a sample that fits the prompt better.

    With l the error of one row at one noise level, s a picture of the subject, x a sample for the same prompt, and p how likely s is to be
    the better one by their rewards::

        loss = mean over pairs and noise draws of  similarity * l_s + BCE(p, sigmoid(beta [(l_s^ref - l_s) - (l_x^ref - l_x)]))

    Args:
        beta: for a mean over the latent of size D; a sum takes one D times smaller.
        similarity: weight of the error on the pictures.
        error: ``mean`` or ``sum`` over the D numbers of a latent.
        half: half of the errors in both terms.

    Pictures are rows with a label above one half (``records: {use: against_own, ...}`` labels what is given 1, and what the policy drew 0);
    without labels, the better rows of pairs. The soft label is ``sigmoid(R(s) - R(x))``, R a harmonic mean of likeness to the pictures and
    fit to the prompt (``against_own.rewards``, ``combine: {use: harmonic}``).

    **Where it goes.** The preference alone rests where the margin is ``log(p / (1 - p)) / beta``, which is 0 for rewards that are alike.
    The error on the pictures has its own minimum, the pictures themselves, and nothing but the preference holds it: with the published beta
    1 on mean errors, whose differences are hundredths, the preference's gradient is ``(sigmoid - p) beta`` of theirs, less than the first
    term's, so that the pictures win.

    Paper: Subject-driven Text-to-Image Generation via Preference-based Reinforcement Learning, arXiv 2407.12164.

    Deviations: one sample of the policy to each picture and step, drawn anew; theirs are drawn once by the base. Both rows have the same
    noise here, their own there.

    Dialects:
    - RPO: beta=1.0: train.py and rpo_sd.py, whose ``--beta`` is not read; train_sdxl.py applies it.
    """
    return pairwise(
        compared(scores.errors(error=error, half=half), links.ahead(links.named("logistic", beta=beta))),
        times(similarity, regularisers.error_of_given(error=error, half=half)),
        kinds=frozenset({"bound"}),
    )
