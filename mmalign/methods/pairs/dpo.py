"""Direct Preference Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Half, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def dpo(
    *,
    beta: Positive = 0.1,
    margin: Literal["total", "per_step", "per_scalar"] = "total",
    link: Literal["logistic", "hinge", "squared"] = "logistic",
    smoothing: Half = 0.0,
) -> Method:
    """The policy as its own reward model: a better row's log-ratio to the reference goes up, a worse one's down.

    With ``m = [log pi - log ref](better row) - [log pi - log ref](worse row)``, and p the strength of the preference::

        loss = mean over pairs of  -p log sigmoid(beta m) - (1 - p) log sigmoid(-beta m)

    Args:
        beta: how much a nat of margin counts; small values let the policy go far from ``ref``.
        margin: ``total``, sums over steps in nats; ``per_step``, means over each row's steps, with a beta about as much larger as
            rows are long; ``per_scalar``, the total divided by the scalars of one event, for denoising steps. The noise draws of a
            bound are estimates of one margin: each is compared by itself (``objectives.scores``).
        link: ``logistic``; ``hinge``, max(0, 1 - beta m); ``squared``, (m - 1 / (2 beta))^2, which is IPO with beta its tau.
        smoothing: part of the labels taken to be flipped, 0 to below 0.5 (conservative DPO).

    Paper: Direct Preference Optimization: Your Language Model is Secretly a Reward Model, arXiv 2305.18290, eq. 7.

    Deviations: the paper has neither soft labels nor ``smoothing``: p is 1 there; a tie, p = 0.5, pulls the margin to 0. Pairs
    of which nothing is known (NaN) are left out.

    Dialects:
    - TRL 1.16: beta=0.1: ``loss_type="sigmoid"``, whose label_smoothing is ignored there.
    - TRL 1.16 sigmoid_norm: beta=0.1, margin="per_step": its lengths count the whole completion, as here.
    - open-instruct: beta=5.0, margin="per_step": its ``dpo_norm``.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method = mm.methods.dpo(beta=0.5)
        >>> mask, ref = torch.tensor([[True], [True]]), torch.tensor([[-3.0], [-3.0]]).double()
        >>> steps = Steps(torch.tensor([[-2.0], [-4.0]]).double(), mask, refs={"ref": ref})
        >>> feedback = Feedback(torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> loss = method.loss(steps, method.signal(feedback))
        >>> (method.weigh(mask) * loss.values).sum()  # a margin of 1 - (-1) nats: -log sigmoid(0.5 * 2)
        tensor(0.3133, dtype=torch.float64)
    """
    return pairwise(
        compared(scores.ratio(margin), links.smoothed(links.ahead(links.named(link, beta=beta)), flips=smoothing)),
        kinds=ANY,
    )
