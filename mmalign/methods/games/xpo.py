"""Exploratory Preference Optimization."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.objectives import scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.sentences.explored import explored
from mmalign.types import Behavior, Method, UserError


def xpo(*, beta: Positive = 0.1, alpha: NotNegative = 1e-5) -> Method:
    """Online DPO that explores: what the reference says becomes less likely, so that the policy tries what nobody has rated yet.

    Half of a group's rows are drawn by ``ref``, and each of them makes a pair with one of the policy's own. With m DPO's margin to
    ``ref``, and y' the rows that ``ref`` drew::

        loss = mean over pairs of  -log sigmoid(beta m)  +  alpha mean over y' of  log pi(y')

    Args:
        beta: how much a nat counts.
        alpha: price of a nat of the reference's own rows; it has no lower bound, so the paper lets it shrink with the number of rounds.

    Paper: Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient RLHF, arXiv 2405.21046,
    algorithm 1.

    Deviations: each round learns from its own rows, as in TRL's trainer; the paper's from those of all rounds so far. What a row is
    scored again with is the policy's own (``Rollout.held``: latents, media), and no checkpoint holds it, so a run that resumed would
    not have the rows of earlier rounds; ``prompts_per_step`` with ``updates_per_epoch`` makes a round larger. Soft labels and ties are
    ours. The default of alpha is TRL's.

    Dialects:
    - TRL: alpha=1e-05: its XPOTrainer, with groups of two.
    """
    if alpha < 0:
        raise UserError(f"alpha: got {alpha}, takes 0 or more")
    method = explored(dpo(beta=beta), score=scores.policy("total"), weight=alpha, rows=partial(comparisons.drawn, name="ref"))
    return replace(
        method,
        behaviors=(Behavior("ref", {"ref": 1.0}),),
        pairs=partial(comparisons.across, by="ref"),
    )
