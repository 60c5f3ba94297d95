"""DPO on critical tokens (cDPO of its authors)."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.types import Method, UserError


def critical_token_dpo(
    *, beta: Positive = 0.1, both: bool = True, by: Literal["prompts", "models"] = "prompts", right: str = "right", wrong: str = "wrong"
) -> Method:
    """DPO in which a wrong answer is blamed for its critical tokens: those that a model of wrong answers likes and one of right ones not.

    With s_t in 0..1 how much more a step belongs to right answers, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta [sum_t s_t log(pi / ref)_{w,t} - sum_t (1 - s_t) log(pi / ref)_{r,t}])

    Args:
        beta: as in ``dpo``.
        both: False: only worse rows are weighted, and s = 1 in better rows.
        by: who says s. ``models``: two references, tuned on right and on wrong answers (``references: {right: {from: runs/right}, wrong:
            {from: runs/wrong}}``, runs of ``sft`` on the better and on the worse answers). ``prompts``: the reference, asked for a good
            and for a bad answer (contrasts ``good`` and ``bad``), which needs no further training.
        right, wrong: names of those two references.

    Paper: Critical Tokens Matter: Token-Level Contrastive Estimation Enhances LLM's Reasoning Capability, arXiv 2411.19943.

    Deviations: the form of the loss and ``both`` (its ``only_neg``) are those of the authors' code. There s_t is the probability of the
    token under ``softmax(2 right - 1 wrong)`` of the logits of two models fine-tuned on right and on wrong answers; its normaliser
    needs both whole vocabularies, which a table has not. Here ``s = sigmoid(log p_right - log p_wrong)`` of the token alone. ``prompts``
    and soft labels are ours.

    Errors: UserError for another ``by``.
    """
    links.positive(beta=beta)
    if by not in ("prompts", "models"):
        raise UserError(f"by: got {by!r}, takes prompts or models")
    return pairwise(token_level.critical(beta=beta, both=both, models=(right, wrong) if by == "models" else None))
