"""Diffusion-KTO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import scores, weights
from mmalign.objectives.sentences.rowwise import rowwise
from mmalign.objectives.terms import baselines, utilities
from mmalign.types import Method


def diffusion_kto(
    *,
    utility: Literal["kahneman_tversky", "loss_averse", "risk_seeking"] = "kahneman_tversky",
    beta: Positive = 1000.0,
    desirable: NotNegative = 1.0,
    undesirable: NotNegative = 1.0,
    baseline: Literal["batch", "mismatched", "zero"] = "batch",
    error: Literal["mean", "sum"] = "mean",
    half: bool = False,
) -> Method:
    """Thumbs up or down on single images: the utility of denoising a good one better, and a bad one worse, than the reference does.

    With l the error of one row at one noise level, ``mean (target - prediction)^2`` over the latent, ``g = l^ref - l`` and z the baseline::

        loss = mean over rows and noise draws of  w_D (1 - U(beta (g - z)))  for a good row,  w_U (1 - U(beta (z - g)))  for a bad one

    Args:
        utility: of a gain x: ``kahneman_tversky``, sigmoid(x), which is KTO's; ``loss_averse``, log sigmoid(x), which is concave
            everywhere; ``risk_seeking``, -log sigmoid(-x), which is convex everywhere.
        beta: for a mean over the latent of size D; a sum takes one D times smaller.
        desirable, undesirable: w_D and w_U.
        baseline: z is ``max(0, mean g)``: of the rows themselves (``batch``), of their outputs under other rows' prompts (``mismatched``,
            another pass), or 0 (``zero``).
        error: ``mean`` or ``sum`` over the D numbers of a latent.
        half: g is half of that.

    **Where it goes.** The weight of a row is ``U'``. It ends on both sides for ``kahneman_tversky``, only for rows that are gained for
    ``loss_averse``, and for ``risk_seeking`` only for rows that are lost: there nothing holds a bad row's error, which grows for ever, so
    it drifts. A utility without a bound leaves no point of rest but by its other sign: where a noisy latent is as often good as bad, the
    reference itself rests for all three, since there ``U'`` is one number.

    Paper: Aligning Diffusion Models by Optimizing Human Utility, arXiv 2404.04465, sec. 4 (eq. 8 in their code's count).

    Deviations: z is the mean over the whole update; their code takes it over a micro-batch and averages those of processes. Of its three
    risk-seeking forms this is the one that the paper writes (``risk_seeking_3``). A soft label p counts p good and 1 - p bad.

    Dialects:
    - diffusion-kto: beta=1000.0, utility="kahneman_tversky": ``--halo sigmoid``; its example draws four good rows to a bad one.
    - diffusion-kto loss averse: beta=1000.0, utility="loss_averse": ``--halo loss_averse``.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method = mm.methods.diffusion_kto(beta=1.0, baseline="zero", utility="risk_seeking", error="sum")
        >>> mask, ref = torch.tensor([[True], [True]]), torch.tensor([[-3.0], [-3.0]]).double()
        >>> steps = Steps(torch.tensor([[-2.5], [-3.5]]).double(), mask, refs={"ref": ref}, kind="bound")
        >>> feedback = Feedback(torch.zeros(2).double(), torch.tensor([0, 1]), labels=torch.tensor([1.0, 0.0]).double())
        >>> method.loss(steps, method.survey(steps, method.signal(feedback))).values  # g is 1 and -1: both gain 1, 1 - log(1 + e)
        tensor([[-0.3133],
                [-0.3133]], dtype=torch.float64)
    """
    gain, score = utilities.named(utility), scores.errors(error=error, half=half)
    cost: Callable[[float, Tensor], Tensor] = lambda weight, x: weight * (1 - gain(beta * x))  # noqa: E731
    return rowwise(
        good=lambda g, z: cost(desirable, g - z),
        bad=lambda g, z: cost(undesirable, z - g),
        baseline=baselines.named(baseline, score),
        weigh=weights.sequence_mean,
        score=score,
        kinds=frozenset({"bound"}),
    )
