"""Binary Classifier Optimization, for pairs."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import baselines
from mmalign.types import Method


def bco_pair(*, beta: Positive = 0.1, shift: Literal["running", "none"] = "running") -> Method:
    """A classifier of better and worse rows whose logit is the policy's own reward, less what rewards are on average.

    With ``d = beta (log pi - log ref)`` of a row, better row w, worse row r, and delta the mean of d::

        loss = mean over pairs of  -log sigmoid(d_w - delta) - log sigmoid(delta - d_r)

    Args:
        beta: reward of a nat.
        shift: ``running``, delta is the mean over all rows of all updates so far, the present one included; ``none``, 0.

    Paper: Binary Classifier Optimization for Large Language Model Alignment, arXiv 2404.04656.

    Deviations: delta is state of the method, in the checkpoint; it is the mean over whole updates, not over micro-batches or processes.
    The paper's weights for rows of unlike prompts are for unpaired data: ``bco``. Soft labels are ours.

    Dialects:
    - TRL 1.16: shift="none", beta=0.1: ``loss_type="bco_pair"``.
    - LLaMA-Factory 0.9.5: shift="running", beta=0.1: and ms-swift; per process, and not in the checkpoint.
    """
    return pairwise(baselines.classified(beta=beta, shift=shift), kinds=ANY)
