"""Online Self-Preferring: soft labels from the model's own judgement."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.types import Method


def osp(*, beta: Positive = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total") -> Method:
    """DPO with labels as sure as the judge is: a pair that is nearly a tie is pulled near a margin of 0.

    With m DPO's margin and p the strength of the preference, which the policy judges itself::

        loss = mean over pairs of  -p log sigmoid(beta m) - (1 - p) log sigmoid(-beta m)

    Args:
        beta, margin: as in ``dpo``.

    Paper: Online Self-Preferring Language Models, arXiv 2405.14103.

    Deviations: the abstract and reviews of the paper were at hand, not its equations. They say that the loss is a cross-entropy of soft
    preferences, whose strengths are judged, for a policy kept near the SFT model, which is ``ref``; that the policy's side of it is
    DPO's sigmoid(beta m), and beta, are ours. Its least is at ``beta m = logit p``, a finite margin, so that strengths keep a policy
    from overfitting, as the abstract claims. How the policy judges, and how pairs are built from a ranking of its own answers, is the
    recipe's; p is the strength that the feedback has. ``dpo`` is the same for such feedback.
    """
    return dpo(beta=beta, margin=margin)
