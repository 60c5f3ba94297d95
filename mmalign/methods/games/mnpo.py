"""Multiplayer Nash Preference Optimization."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from mmalign.arguments.ranges import Positive, Proportion
from mmalign.needs import refs
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY, Part
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method, Move, UserError


def mnpo(
    *,
    eta: Positive = 0.0075,
    shares: dict[str, Proportion] | None = None,
    margin: Literal["total", "per_step", "per_scalar"] = "total",
) -> Method:
    """Each round moves from a mixture of the reference and earlier policies, by a fixed margin for what is preferred.

    With ``h(q) = log q(better row) - log q(worse row)``, and shares c_j of the named policies q_j that add up to 1::

        loss = mean over pairs of  (h(pi) - sum_j c_j h(q_j) - 1 / (2 eta))^2

    Args:
        eta: step size; a sure pair is asked to be ``1 / (2 eta)`` nats ahead, 67 by default.
        shares: name of a parameter set -> its share; by default a third each of ``ref``, ``previous`` and ``before``, the policy of the
            rollout before and that of the one before it. ``{ref: 1/3, previous: 2/3}`` is the same run as ``inpo``.
        margin: the row's log-probabilities added up, or divided by its live steps, or by the scalars of one event; what is asked for
            is in the same units.

    Rounds of N steps are ``references: {before: {every: N, shares: {previous: 1}}, previous: {every: N}}``, in this order.

    Paper: Multiplayer Nash Preference Optimization, arXiv 2509.23102, eq. 15 and 17 with the squared distance; eta from appendix C.

    Deviations: the paper searches the shares of two earlier policies over 0, 0.1, 1/3, 1/2, 2/3 and 0.9 and does not say which it took; a
    third of ``ref`` is in the authors' scripts (github.com/smiles724/MNPO), whose trainer first counted the last policy alone, and now
    both alike, as here. Players with
    judges of their own (eq. 18) are several runs. Soft labels are the expected loss of a hard one.

    Dialects:
    - MNPO: margin="per_step": its log-probabilities, of the policy and of the references, are means over tokens; 67 nats of each.
    """
    links.positive(eta=eta)
    moves = (Move("before", {"previous": 1.0}), Move("previous", {"current": 1.0})) if shares is None else ()
    shares = dict.fromkeys(("ref", "previous", "before"), 1 / 3) if shares is None else dict(shares)
    if not shares or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise UserError(f"shares: got {shares}, takes names of parameter sets with shares of 0 or more that add up to 1")
    parts = [(share, scores.ratio(margin, ref=name)) for name, share in shares.items()]
    # the shares add up to 1, so log pi - sum_j c_j log q_j is a mean of log-ratios
    score = Part(
        lambda steps: torch.stack([share * part.of(steps) for share, part in parts]).sum(0),
        frozenset(map(refs, shares)),
        "pair",
    )
    link = links.ahead(lambda margin: links.squared(margin, beta=eta))
    return replace(pairwise(compared(score, link), kinds=ANY), moves=moves)
