"""Online Self-Preferring: soft labels from the model's own judgement."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.objectives.feedback import comparisons
from mmalign.types import Method


def osp(*, beta: Positive = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total", scale: Positive = 1.0) -> Method:
    """DPO with labels as sure as the judge is: a pair that is nearly a tie is pulled near a margin of 0.

    The rows of a group are ranked, the best is paired with the worst, the second with the last but one, and so on. With m DPO's margin
    of a pair and p its strength, ``sigmoid((r_b - r_w) / scale)``, or what an oracle says of the two::

        loss = mean over pairs of  -p log sigmoid(beta m) - (1 - p) log sigmoid(-beta m)

    Args:
        beta, margin: as in ``dpo``.
        scale: reward units of a logit of p.

    Paper: Online Self-Preferring Language Models, arXiv 2405.14103.

    Strengths of the model's own: ``oracle: {use: own_verdicts}`` asks the policy itself which of two answers is better, or whether one is
    good, and reads how sure it is; ``mix`` teaches it to judge beside its samples (``configs/text_small/self_preferring``).

    Deviations: the abstract and reviews of the paper were at hand, not its equations. They say that several pairs are built from a
    ranking of the policy's own answers, and that the loss is a cross-entropy of soft preferences, whose strengths the policy judges
    itself, for one kept near the SFT model, which is ``ref``. Which rows of a ranking meet, that the policy's side is DPO's sigmoid(beta
    m), beta, and the words of the question are ours. Its least is at ``beta m = logit p``, a finite margin, so that strengths keep a
    policy from overfitting, as the abstract claims. Any other oracle, or the run's rewards, may judge in its place. Pairs of records have
    their own strengths, and are the same run as ``dpo``.
    """
    return replace(dpo(beta=beta, margin=margin), pairs=partial(comparisons.best_with_worst, scale=scale))
