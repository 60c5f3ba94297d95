"""A model of two that were tuned, and of the one that both began as."""

from __future__ import annotations

from mmalign.arguments.ranges import Proportion
from mmalign.merges._parts import BASE, Merge, proportions
from mmalign.types import UserError


def two_stage(*, instruct: str, distilled: str, pretrained: str = BASE, inner: Proportion = 0.5, outer: Proportion = 0.8) -> Merge:
    """``theta = m (l theta_instruct + (1 - l) theta_distilled) + (1 - m) theta_pretrained``: what RLHF of a reasoning model starts from.

    Args:
        instruct, distilled, pretrained: names of parts; ``base`` is the policy's own weights. inner: l. outer: m.

    Paper: Balanced Actor Initialization, https://arxiv.org/abs/2509.00309 (both stages are linear there too). Its ratios come from sweeps
    over its own models; these defaults are ours.

    Errors: UserError for a part named twice, and ratios outside 0..1.

    Examples:
        >>> two_stage(instruct="chat", distilled="r1", inner=0.25, outer=0.8).shares
        ({'chat': 0.2, 'r1': 0.6000000000000001, 'base': 0.19999999999999996},)
    """
    if len({instruct, distilled, pretrained}) < 3:
        raise UserError(f"rule: got the parts {instruct}, {distilled}, {pretrained}, takes three")
    within, over = proportions("rule.inner", [inner])[0], proportions("rule.outer", [outer])[0]
    return Merge(({instruct: over * within, distilled: over * (1 - within), pretrained: 1 - over},))
