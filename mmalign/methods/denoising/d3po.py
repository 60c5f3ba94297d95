"""D3PO: a preference between two images, as one between their steps."""

from __future__ import annotations

from mmalign.arguments.ranges import Interior, Positive
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.denoising_pairs import of_steps
from mmalign.types import Method


def d3po(*, beta: Positive = 0.1, clip: Interior | None = 0.1, ratio: str = "per_scalar") -> Method:
    """DPO at every denoising step of a pair, with the label of the whole: no reward model, and no gradient through the sampler.

    ``x_it = log( pi_it / ref_it )``, and with the better row w and the worse row l of a pair, over trained steps t::

        loss = mean_pairs mean_t [ -log sigmoid( beta clip(x_wt) - beta clip(x_lt) ) ],   clip(x) = log clamp(e^x, 1 - clip, 1 + clip)

    Args:
        beta: weight of a log-ratio. clip: how far a ratio to ``ref`` may leave 1; beyond it a step has no gradient, so that it stays where
            it is. None: no limit.
        ratio: of ``ref``: ``per_scalar``, log-densities over D, as the code has them, ``per_step``, those of the whole latent, in nats.

    Pairs are the best and the worst row of each group, so that ``batch: {group: 2}`` and ``policy.schedule: {same_noise: true}`` are its
    own.

    Paper: D3PO: Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model, arXiv 2311.13231, eq. 13 and 14.

    Deviations: ties make no pair; in the code they cost log 2 and have no gradient. Where it rests, in closed form (one Gaussian, a linear
    reward, labels by Bradley-Terry, no clip): with one trained step at ``ref exp(r / beta) / Z``, exactly; with several, each stops short
    of it, since the noise of the others blurs the label. With hard labels and no clip it drifts without end; the clip stops it near its
    edge.

    Dialects:
    - d3po: beta=0.1, clip=0.1: its configuration.
    """
    return pairwise(of_steps(beta=beta, clip=clip, ratio=ratio), kinds=frozenset({"transition"}), by_step=True)
