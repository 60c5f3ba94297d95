"""Two models with a ratio of their own for each part of the depth, whose mean is given: less of the alignment tax at the same alignment."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, Proportion
from mmalign.merges._parts import BASE, Merge, proportions, with_mean
from mmalign.types import UserError


def by_block(
    *, aligned: str, before: str = BASE, mean: Proportion = 0.5, blocks: Count = 4, ratios: list[Proportion] | None = None
) -> Merge:
    """``theta_l = a_l theta_aligned + (1 - a_l) theta_before`` with ``mean_l a_l = a``: heterogeneous model averaging (HMA, AMA).

    aligned, before: names of parts; ``base`` is the policy's own weights. mean: a. blocks: K, into which the layers are dealt out
    evenly, from the first to the last. ratios: a_l of each block, in place of ``mean`` and ``blocks``; without them all are ``mean``, until
    ``search`` has found better ones with that mean.

    Paper: Mitigating the Alignment Tax of RLHF, https://arxiv.org/abs/2309.06256, sec. 5: the a_l are those of the largest reward among
    those with the mean a. Deviations: it follows the gradient of a proxy's likelihood to find them; here ``search`` asks the reward itself
    (CMA-ES), which needs no gradient, and holds for any model and reward.

    Errors: UserError for a part named twice, and ratios outside 0..1.

    Examples:
        >>> by_block(aligned="rlhf", ratios=[0.25, 1.0]).shares
        ({'rlhf': 0.25, 'base': 0.75}, {'rlhf': 1.0, 'base': 0.0})
    """
    if aligned == before:
        raise UserError(f"rule.before: got {before}, takes another part than aligned")
    given = proportions("rule.ratios", [mean] * blocks if ratios is None else ratios)
    if not given:
        raise UserError("rule.ratios: got [], takes one or more")
    kept = sum(given) / len(given)
    return Merge(
        tuple({aligned: ratio, before: 1 - ratio} for ratio in given), given,
        lambda others: by_block(aligned=aligned, before=before, ratios=list(with_mean(others, kept))),
    )  # fmt: skip
