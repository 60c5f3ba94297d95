"""Length-desensitized DPO."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive, Proportion
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import shares
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def ld_dpo(*, beta: Positive = 0.1, alpha: Proportion = 0.5) -> Method:
    """DPO in which what a row says beyond the length of the other one counts less.

    With n the length of the shorter row of a pair, and a row's score
    ``d = sum_{t <= n} log(pi / ref)_t + alpha sum_{t > n} log(pi / ref)_t``::

        loss = mean over pairs of  -log sigmoid(beta (d_w - d_r))

    Args:
        beta: as in ``dpo``.
        alpha: 0 to 1; 1 is DPO, 0 cuts both rows to n.

    Paper: Length Desensitization in Direct Preference Optimization, arXiv 2409.06411.

    Deviations: alpha counts for the policy and the reference; LLaMA-Factory has it for the policy alone. Soft labels are ours.

    Dialects:
    - TRL 1.16: alpha=0.5, beta=0.1: ``ld_alpha=0.5``.
    """
    score = scores.ratio(share=shares.beyond_shorter(alpha))
    return pairwise(compared(score, links.ahead(links.named("logistic", beta=beta))))
