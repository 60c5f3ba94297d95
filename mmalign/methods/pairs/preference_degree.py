"""Self-supervised preference optimization: awareness of degree."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import DEGREE
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def preference_degree(*, beta: Positive = 0.1, weight: NotNegative = 0.1) -> Method:
    """DPO, and a second task: to tell from its hidden states how much of an answer's key content was taken out.

    With m DPO's margin and c the log-probability that a head of the policy gives to the right degree, of both rows::

        loss = mean over pairs of  -log sigmoid(beta m) - weight (c_w + c_r) / 2

    Args:
        beta: as in ``dpo``.
        weight: of the classification.

    Paper: Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness, arXiv 2409.17791.

    Deviations: the abstract and two reviews of the paper were at hand, not its equations nor its code. They agree on the sum of an
    alignment loss and a classification of how much key content was taken out; the mean over both rows and the weight are ours. There
    RAKE, which ranks keywords, finds the key content. Here that is the policy's choice, as the degrees and the head are, which gives c
    as the term ``degree``, summed over a row's steps: of language models, ``heads: [degree]``, which takes 0 to 3 quarters of an
    answer's tokens out, those that the reference expects least first (``policies/language/scoring/heads.py``). ``spo`` is another paper's.
    """
    return pairwise(
        compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        times(weight, regularisers.of_both(DEGREE)),
        kinds=frozenset({"token"}),
    )
