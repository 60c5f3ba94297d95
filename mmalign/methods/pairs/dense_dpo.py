"""Dense DPO, of RLHF-V."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import shares
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def dense_dpo(*, beta: Positive = 0.1, gamma: NotNegative = 5.0, margin: Literal["total", "per_step"] = "per_step") -> Method:
    """DPO on corrected answers, in which what was corrected counts more than what was kept.

    With c_t = gamma for steps that the other row has not and 1 for the others, and a row's score
    ``d = sum_t c_t log(pi / ref)_t / sum_t c_t``::

        loss = mean over pairs of  -log sigmoid(beta (d_w - d_r))

    Args:
        beta: as in ``dpo``.
        gamma: what a corrected step counts for, or one that people marked as wrong in the worse row.
        margin: ``per_step``, as above; ``total``, without the division.

    Paper: RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human Feedback, arXiv 2312.00849.

    Deviations: the paper calls it DDPO, which is another method elsewhere. Its gamma of 5 is as we remember it; beta is ours. Which
    steps were corrected is the fact ``changed``; of pairs with marks (``wrong_rejected`` of `mmalign label`) it is what is marked, and c_t
    is 0 for what is marked in the better row (``wrong_chosen``), which is ours. Soft labels are ours.

    Dialects:
    - RLAIF-V: beta=0.5, gamma=3.0, margin="total": the defaults of the code that RLHF-V and RLAIF-V share: it adds up, and divides
      where `dpo_use_average` is set. A row of 60 tokens, 6 of them corrected, counts for 72 steps.
    """
    score = scores.ratio(margin, share=shares.changed(gamma))
    return pairwise(compared(score, links.ahead(links.named("logistic", beta=beta))), kinds=frozenset({"token"}))
