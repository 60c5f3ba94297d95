"""How far a policy has gone from its reference, on what it says itself: KL where the rows that it learns from are not its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import kls
from mmalign.types import UserError

ROWS = 16  # answers scored at once


@torch.no_grad()
def sample_kl(policy: Any, prompts: Sequence[Any], outputs: Sequence[str], reference: str) -> Tensor:
    """``[B]``: ``sum_t KL(policy(. | prompt, y_<t) || reference(. | prompt, y_<t))`` over the tokens of each answer y, in nats.

    The mean over a policy's own answers is the KL of its whole answers, as each term is the exact expectation of a token's log-ratio
    (the chain rule), with less noise than log-ratios. It is not over given records: those are no samples of the policy, and their
    log-ratios are no KL. Answers that were drawn at another temperature weigh the prefixes as they were drawn.

    NaN for an empty answer, and for one that the policy cannot score.
    """
    nats = torch.full((len(prompts),), math.nan, dtype=torch.float64)
    rows = [row for row, output in enumerate(outputs) if output.strip()]
    for start in range(0, len(rows), ROWS):
        for some, values in _scored(policy, prompts, outputs, rows[start : start + ROWS], reference):
            nats[some] = values
    return nats


def _scored(policy: Any, prompts: Sequence[Any], outputs: Sequence[str], rows: list[int], name: str) -> Iterator[tuple[list[int], Tensor]]:
    """Rows and their values: of those that can be scored together, or else one by one."""
    number, rng = torch.arange(len(rows)), torch.Generator().manual_seed(0)
    try:
        rollout = policy.encode([prompts[row] for row in rows], [outputs[row] for row in rows], number, rng)
    except UserError:  # an answer that reads back as more tokens than there may be: not known, and no reason to stop a run
        for row in rows if len(rows) > 1 else ():
            yield from _scored(policy, prompts, outputs, [row], name)
        return
    policy.remember(rollout, [name], len(rows))
    steps = policy.steps(rollout, number, None, frozenset({kls(name)}))
    yield rows, torch.where(steps.mask.cpu(), steps.kls[name].double().cpu(), 0.0).sum(1)
