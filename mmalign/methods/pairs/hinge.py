"""The hinge loss on DPO's margin."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.types import Method


def hinge(*, beta: Positive = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total") -> Method:
    """SLiC's hinge with a reference: a pair that is ahead by 1 / beta is left alone.

    With m DPO's margin::

        loss = mean over pairs of  max(0, 1 - beta m)

    Args:
        beta, margin: as in ``dpo``.

    Paper: Statistical Rejection Sampling Improves Preference Optimization, arXiv 2309.06657, eq. 10 (hinge-norm).

    Deviations: soft labels are ours. ``slic`` is the original, without a reference.

    Dialects:
    - TRL 1.16: beta=0.1: ``loss_type="hinge"``.
    """
    return dpo(beta=beta, margin=margin, link="hinge")
