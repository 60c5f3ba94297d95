"""What tuning has changed of one model, added to another."""

from __future__ import annotations

from mmalign.arguments.ranges import Finite
from mmalign.merges._parts import BASE, Merge, proportions
from mmalign.types import UserError


def residue(*, onto: str, tuned: str, before: str = BASE, ratios: list[Finite] | None = None) -> Merge:
    """``theta_l = theta_onto + r_l (theta_tuned - theta_before)``, with a ratio for each of as many blocks as there are ratios.

    onto: the part that is added to. tuned, before: the part whose change is added, and what it was tuned from; ``base`` is the policy's
    own weights. ratios: from the first layers to the last, dealt out evenly; one alone, which is 1 by default, holds for the whole model.
    0 adds nothing, more than 1 goes beyond what was learned, below 0 takes it away.

    Paper: Mistral-C2F, https://arxiv.org/abs/2406.08657 ("effective-merged": the residue of a fine actor put onto an instruct model with
    ratios by layer); with one ratio task arithmetic, https://arxiv.org/abs/2212.04089.

    Errors: UserError for a part named twice.

    Examples:
        >>> residue(onto="chat", tuned="fine", ratios=[0.5]).shares
        ({'chat': 1.0, 'fine': 0.5, 'base': -0.5},)
    """
    if tuned in (before, onto):
        raise UserError(f"rule.tuned: got {tuned}, takes another part than onto and before")
    given = proportions("rule.ratios", [1.0] if ratios is None else ratios, least=-1e6, most=1e6)
    if not given:
        raise UserError("rule.ratios: got [], takes one or more")
    return Merge(tuple(_shares(onto, tuned, before, ratio) for ratio in given), given, lambda others: residue(
        onto=onto, tuned=tuned, before=before, ratios=list(others)))  # fmt: skip


def _shares(onto: str, tuned: str, before: str, ratio: float) -> dict[str, float]:
    shares = {onto: 1.0, tuned: ratio}
    shares[before] = shares.get(before, 0.0) - ratio
    return shares
