"""DPO on critical tokens (cDPO of its authors)."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.types import Method


def critical_token_dpo(*, beta: Positive = 0.1, both: bool = True) -> Method:
    """DPO in which a wrong answer is blamed for its critical tokens: those that a model of wrong answers likes and one of right ones not.

    With s_t in 0..1 how much more a step belongs to right answers, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta [sum_t s_t log(pi / ref)_{w,t} - sum_t (1 - s_t) log(pi / ref)_{r,t}])

    Args:
        beta: as in ``dpo``.
        both: False: only worse rows are weighted, and s = 1 in better rows.

    Paper: Critical Tokens Matter: Token-Level Contrastive Estimation Enhances LLM's Reasoning Capability, arXiv 2411.19943.

    Deviations: the form of the loss and ``both`` (its ``only_neg``) are those of the authors' code. There s_t is the probability of the
    token under ``softmax(2 right - 1 wrong)`` of the logits of two models fine-tuned on right and on wrong answers; its normaliser
    needs both whole vocabularies, which a table has not. Here ``s = sigmoid(log p_right - log p_wrong)`` of the token alone, with the
    reference asked for a good and for a bad answer (contrasts ``good`` and ``bad``) in place of two more models. Soft labels are ours.
    """
    links.positive(beta=beta)
    return pairwise(token_level.critical(beta=beta, both=both))
