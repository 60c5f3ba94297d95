"""Semi-policy preference optimisation."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive, Steps
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.state.earlier import earlier
from mmalign.objectives.terms import margins
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def seppo(
    *,
    beta: Positive = 5000.0,
    anchor: bool = True,
    opponent: Literal["random", "latest", "first"] = "random",
    every: Steps = 50,
    error: Literal["mean", "sum"] = "mean",
    half: bool = True,
) -> Method:
    """Good images from a data set against samples of an earlier checkpoint, which are not bad images by themselves: the anchor says.

    With l the error of one row at one noise level under the policy, l' under ``previous``, an earlier checkpoint, which drew the other row
    r, and w the good row, both with the same level and noise::

        loss = mean over pairs and noise draws of  -log sigmoid(-1/2 beta [(l_w - l'_w) - S (l_r - l'_r)])

    S is +1, which is Diffusion-DPO's, and -1 where ``l'_w < l_w``: where the earlier checkpoint explains the good image better than the
    policy does, its own sample is likely a good one too, and is learned from, not pushed away.

    Args:
        beta: for a mean over the latent of size D; a sum takes one D times smaller.
        anchor: the criterion; without it S is +1.
        opponent: which checkpoint ``previous`` is: one drawn at ``random`` of all so far, the ``latest``, or the ``first``, the policy as
            it was.
        every: steps from one checkpoint to the next.
        error: ``mean`` or ``sum`` over the D numbers of a latent.
        half: the 1/2 of the formula.

    Samples of ``previous`` come from ``records: {use: against_own, of: ...}``; other pairs are taken as they are. ``opponent: latest`` and
    ``anchor: false`` is SPIN for diffusion models (arXiv 2402.10210).

    **Where it goes.** Where the policy is as good as ``previous`` on good images it is Diffusion-DPO with a reference that follows, which
    has no point of rest before samples of ``previous`` are told from good images by nothing (SPIN's fixed point is the data). Where it
    is worse, both rows are learned from: a supervised step towards the good images and the samples.

    Paper: SePPO: Semi-Policy Preference Optimization for Diffusion Alignment, arXiv 2410.05255.

    Deviations: their training code is not public, and the criterion is applied to each noise draw by itself. The random checkpoint is
    drawn anew at every ``every``-th step, by taking the current one with probability 1 / n at the n-th: it is any of the n alike, and one
    set is held instead of n. Soft labels are ours.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method = mm.methods.seppo(beta=1.0, error="sum")
        >>> mask, feedback = torch.ones(2, 1).bool(), Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> for ahead in (1.0, -1.0):  # of previous, on the good row; on its own sample it is behind by 1 both times
        ...     steps = Steps(torch.tensor([[ahead], [1.0]]).double(), mask, refs={"previous": torch.zeros(2, 1).double()}, kind="bound")
        ...     print(round(float(method.loss(steps, method.signal(feedback)).values[0]), 4))  # margins of 1 - 1 and -1 + 1
        0.6931
        0.6931
    """
    score = scores.errors(error=error, half=half, ref="previous")
    plain = compared(score, links.ahead(links.named("logistic", beta=beta)))
    return pairwise(
        margins.by_anchor(score, beta=beta) if anchor else plain,
        kinds=frozenset({"bound"}),
        moves=(earlier("previous", opponent, every=every),),
        sampled_by="previous",
    )
