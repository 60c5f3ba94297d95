"""Terms of a pair over denoising steps: a preference between rows, read as one at each of their steps."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from mmalign.needs import refs
from mmalign.objectives import links
from mmalign.objectives.parts import Part, held, live
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps, UserError

REF = refs("ref")


def of_steps(*, beta: float, clip: float | None, ratio: str) -> Term:
    """``-log sigmoid(beta (c(x_w) - c(x_l)))`` at every step that both rows of a pair have, x the log-ratio to ``ref``, ``[N, T]``.

    ``c(x)`` is ``log clamp(e^x, 1 - clip, 1 + clip)``, without gradient beyond (D3PO, arXiv 2311.13231). Other steps cost 0.

    beta: above 0. clip: between 0 and 1, None for none. ratio: ``per_scalar`` or ``per_step``.
    """
    links.positive(beta=beta)
    if ratio not in ("per_scalar", "per_step"):
        raise UserError(f"ratio: got {ratio!r}, takes 'per_scalar' or 'per_step'")

    def score(steps: Steps) -> Tensor:
        x = live(steps.log_probs - held(steps, REF), steps.mask) / (steps.event_size if ratio == "per_scalar" else 1)
        return x if clip is None else x.clamp(math.log1p(-clip), math.log1p(clip))

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score(steps))
        both = steps.mask[0::2] & steps.mask[1::2]
        return live(-functional.logsigmoid(beta * live(better - worse, both)), both)

    needs = frozenset({REF})
    return Term(of, needs, kinds=frozenset({"transition"}), score=Part(score, needs))
