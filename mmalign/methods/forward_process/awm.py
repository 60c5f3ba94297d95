"""Advantage-weighted matching."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.needs import NOISE, refs
from mmalign.objectives import surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import Part
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import matching as errors
from mmalign.types import Feedback, Method, Steps


def awm(
    *,
    weight: Literal["uniform", "noise", "noise_squared", "huber", "generalised_huber"] = "uniform",
    power: Positive = 0.25,
    clip: Proportion = 1.0,
    kl: NotNegative = 1e-3,
    std: Literal["batch", "group", "none"] = "batch",
    largest: Positive = 5.0,
) -> Method:
    """GRPO where a row's log-probability is minus its pretraining loss: rows matched by how good they are, away from bad ones.

    With l the weighted squared error per scalar of the velocity of one row at one noise level, under the policy and under ``previous``,
    which sampled, with the same noise, and ``rho = exp(l_previous - l)``::

        loss = mean over rows and noise draws of  -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + kl |v - v_ref|^2 / D
        A = clip((reward - mean_group) / std, -largest, largest) / largest

    Args:
        weight: of an error e at noise level s: ``uniform``, e; ``noise``, s e; ``noise_squared``, s^2 e; ``huber``, s sqrt(e);
            ``generalised_huber``, s e^p / p.
        power: p of the last.
        clip: how far a ratio may leave 1; 1 is off, but for bad rows whose error has shrunk by more than log 2.
        kl: weight of the squared distance to ``ref``.
        std: what advantages are divided by: of the ``batch``, of the ``group``, or ``none``.
        largest: advantage, which becomes 1.

    **Where it goes.** In one update of each rollout and with ``weight="uniform"`` it rests where ``v - v_ref = Cov(A, y | x_t) / kl``:
    for a linear reward in one Gaussian that is the optimum ``p exp(A / kl) / Z`` (as of ``ram`` with scale 1 / kl). Other weights ask
    for another KL at each level, so that no one tilt rests; with kl 0 none does.

    Paper: Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models, arXiv 2509.25050; weights and defaults are their
    code's.

    Deviations: their second pull, to a moving average of the policy, is not here; ``references: {ref: {every: N, shares: ...}}`` makes
    ``ref`` itself one. Means over the D scalars of a latent, as theirs.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.0, 1.0, 11.0]).double(), group=torch.tensor([0, 0, 0]))
        >>> mm.methods.awm(std="none").signal(feedback).tolist()  # -4, -3 and 7, limited to 5, over 5
        [[-0.8], [-0.6], [1.0]]
    """

    def advantage(feedback: Feedback) -> Tensor:
        raw = advantages.normalised(feedback.rewards, feedback.group, std=std, unbiased=False)
        return advantages.clip(raw, largest=largest) / largest

    def ratio(steps: Steps) -> Tensor:
        before, now = (errors.weighted(steps, error, weight, power) for error in (errors.error_of(steps, "previous"), errors.error(steps)))
        return before - now

    return policy_gradient(
        advantage=advantage,
        log_ratio=Part(ratio, frozenset({refs("previous")}) | (frozenset() if weight == "uniform" else frozenset({NOISE}))),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=errors.distant("ref", beta=kl),
        weigh=weights.sequence_mean,
        kinds=frozenset({"bound"}),
    )
