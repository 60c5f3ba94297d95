"""POWER with dynamic labels."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers, relabelled
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method, UserError


def power_dl(*, beta: Positive = 0.1, eta: NotNegative = 0.1, gamma: Proportion = 0.1) -> Method:
    """Robust rewards without a reference, and labels that move to what the policy says, so that doubtful pairs stop teaching.

    With a the mean log-probability of a row's steps and n its length, better row w, worse row r, sg without gradient::

        z    = beta [a_w - a_r + 1 / n_w - 1 / n_r],    q = (1 - gamma) p + gamma sg(sigmoid(z))
        loss = mean over pairs of  -q log sigmoid(z) - (1 - q) log sigmoid(-z) - eta beta a_w

    Args:
        beta: scale of the rewards.
        eta: weight of the better row's mean log-likelihood.
        gamma: how far a label moves to the policy's own at a visit, 0 to 1; 0 is POWER.

    Paper: Sail into the Headwind: Alignment via Robust Rewards and Dynamic Labels against Reward Hacking, arXiv 2412.09544.

    Deviations: the abstract and summaries of the paper were at hand, not its equations; the loss is derived here from what they say.
    Of ``E[r] + beta H``, H Guiasu's weighted entropy ``-E[v log pi]``, a policy is the best one for just the rewards
    ``r = beta v (log pi + 1) + c(prompt)``: with the weight v = 1 / n, z is the difference of two. A reward model that must also keep
    the best policy's value low, against that of the better rows, pays ``eta (E_pi[r] + beta H - E_better[r])``, which is
    ``eta beta (E_pi[v] - E_better[v log pi])`` and a constant; ``E_pi[v]``, over the policy's own answers, is left out. The label's rule
    is the simplest one that ends at the policy's own opinion, where the gradient is 0; it leaves pairs that are hardly covered near the
    initial policy and lets covered ones be learnt, as the summaries say. The choice of v, the rule's form and all defaults are ours.

    Labels of records that have an id move on from visit to visit, p being the last visit's q; they are state of the method, in the
    checkpoint. A pair without an id starts at its strength at each visit, which in one pass over the data is the same.
    """
    links.positive(beta=beta)
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma: got {gamma}, takes 0 to 1")
    comparison = compared(relabelled.weighted_entropy(), links.ahead(links.named("logistic", beta=beta)))
    return pairwise(relabelled.moved(comparison, gamma), times(eta * beta, regularisers.likelihood("sequence")))
