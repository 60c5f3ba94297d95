"""Self-distillation: the model that has been shown an answer teaches the one that has not."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmalign.needs import contrast
from mmalign.objectives.parts import live, under
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Method, Steps, UserError


def sdpo(*, taught: str = "taught", rows: Literal["worse", "both"] = "worse") -> Method:
    """Each token of an own sample is judged by how much likelier the model itself finds it once its prompt shows a better answer.

    With pi' the policy under the contrast ``taught``, sg without gradient, and the mean over the row's live steps::

        A_t = sg(log pi'_t - log pi_t)        loss = mean over pairs of  mean_t [ -A_t log pi_t ]  of the worse row

    which is the gradient of the reverse KL to the taught policy, by its score, where the row is the policy's own.

    Args:
        taught: the policy's contrast that shows the other row of the pair: ``contrasts: {taught: "{prompt} A good answer: {other}"}``.
        rows: ``worse``: the row that was shown a better one; ``both``: the better one too, which is shown a worse one, as the mean of both.

    Online, a pair is the best and the worst row of a group (SDPO: the successful attempt is the feedback). Offline, ``records: {use:
    against_own, ...}`` makes pairs of a demonstration and an own sample (SDFT: the demonstration is shown).

    Paper: Reinforcement Learning via Self-Distillation (SDPO), arXiv 2601.20802; Self-Distillation Enables Continual Learning (SDFT),
    arXiv 2601.19897; recalled, the numbers too.

    Deviations: the KL by its score on the sampled token, and not over the whole vocabulary; the teacher is the policy as it is, where
    theirs may lag behind. SDPO shows what an environment said too. Ties count half in either order, as all soft labels of pairs.
    """
    if rows not in ("worse", "both"):
        raise UserError(f"rows: got {rows!r}, takes worse or both")

    def of(steps: Steps, order: Order) -> Tensor:
        gap = live(under(steps, taught).log_probs - steps.log_probs, steps.mask).detach()
        cost = -(gap * live(steps.log_probs, steps.mask)).sum(1, keepdim=True) / steps.mask.sum(1, keepdim=True).clamp(min=1)
        better, worse = order.sides(cost)
        return worse if rows == "worse" else (better + worse) / 2

    return pairwise(Term(of, frozenset({contrast(taught)}), kinds=frozenset({"token"})))
