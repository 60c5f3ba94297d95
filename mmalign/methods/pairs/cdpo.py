"""Conservative DPO."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Half, Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.types import Method


def cdpo(*, beta: Positive = 0.1, smoothing: Half = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total") -> Method:
    """DPO where a part of the labels is taken to be flipped: no margin is asked to grow without end.

    With m DPO's margin and e the smoothing, for a sure label::

        loss = mean over pairs of  -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)

    which is lowest at ``beta m = log((1 - e) / e)``.

    Args:
        beta, margin: as in ``dpo``.
        smoothing: e, 0 to below 0.5.

    Paper: A note on DPO with noisy preferences and relationship to IPO, Eric Mitchell, https://ericmitchell.ai/cdpo.pdf.

    Deviations: soft labels are smoothed too. The default smoothing is ours. ``critical_token_dpo`` is called cDPO by its authors.

    Dialects:
    - OpenRLHF 0.11: beta=0.1, smoothing=0.1: so do eric-mitchell's code, LLaMA-Factory and ms-swift (``label_smoothing``).
    - TRL 1.16: beta=0.1, smoothing=0.0: its ``sigmoid`` ignores label_smoothing.
    """
    return dpo(beta=beta, smoothing=smoothing, margin=margin)
