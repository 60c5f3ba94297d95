"""Methods for two rows of one prompt, by how much better one's reward is than the other's.

**Layout.** Rows ``2k`` and ``2k + 1`` of the Steps are a pair. The signal ``[2N, 1, 2]`` holds a row's reward minus its partner's, and 1
where both are known; a tie is a gap of 0, and known. Both are 0 where nothing is known. A recipe brings the rows into order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.needs import OLD
from mmalign.objectives import links, ratios, surrogates, weights
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import DENSITIES, Part, Reading, live, refuse_kind
from mmalign.types import Feedback, Loss, Method, Need, Steps, UserError


def _signal(feedback: Feedback, rewards: Tensor) -> Tensor:
    """The signal ``[B, 1, 2]`` of rewards ``[B]``."""
    if feedback.pairs is None:
        raise UserError("Feedback.pairs: got None, this method takes pairs of row numbers")
    comparisons.refuse_shared_rows(feedback.pairs)
    first, second = feedback.pairs[:, 0], feedback.pairs[:, 1]
    ahead = rewards[first] - rewards[second]
    known = (~ahead.isnan()).double()
    numbers = torch.zeros(len(rewards), 1, 2, dtype=torch.float64)
    numbers[first, 0] = torch.stack([ahead.nan_to_num(0.0), known], dim=-1)
    numbers[second, 0] = torch.stack([-ahead.nan_to_num(0.0), known], dim=-1)
    return numbers


REWARDS_OF_ROWS = Reading(lambda feedback: feedback.rewards.detach().double())


def reward_gaps(*, score: Part, value: Callable[[Tensor, Tensor], Tensor], rewards: Reading = REWARDS_OF_ROWS) -> Method:
    """Each pair costs ``value(scores, gap)``, which stands in all live cells of both its rows.

    A pair with an empty row, or of which nothing is known, has value 0.

    Args:
        score: ``Steps -> [2N, 1]``, of whole rows.
        value: of the scores ``[N, 2]`` and of the gap ``[N, 1]``, the reward of the first minus that of the second, ``-> [N, 1]``.
        rewards: ``[B]``, NaN is missing, in place of the feedback's own.

    Errors: UserError for a bound, and for rows that are no pairs.
    """

    def signal(feedback: Feedback) -> Tensor:
        return _signal(feedback, rewards.of(feedback))

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, DENSITIES)
        if signal.shape != (len(steps), 1, 2) or len(steps) % 2:
            raise UserError(f"signal: got shape {list(signal.shape)} for {len(steps)} rows, takes [{len(steps)}, 1, 2] and whole pairs")
        gap, known = signal[0::2, :, 0], signal[0::2, :, 1] > 0
        if not torch.equal(gap, -signal[1::2, :, 0]):
            raise UserError("signal: rows 2k and 2k + 1 are no pair; takes the two rows of each pair side by side")
        rows = steps.mask.any(1, keepdim=True)
        whole = rows[0::2] & rows[1::2] & known
        scores = live(score.of(steps), rows).view(-1, 2)
        values = live(value(scores, gap), whole)
        cells = live(values.repeat_interleave(2, 0).expand_as(steps.mask), steps.mask)
        return Loss(cells, _metrics(scores, gap, whole, rows), rows.sum())

    return Method(
        signal=signal,
        loss=loss,
        weigh=weights.sequence_mean,
        needs=score.needs,
        unit="pair",
        kinds=DENSITIES,
        keep=lambda feedback: signal(feedback)[:, 0, 1] > 0,
        reads=rewards.reads,
        state=rewards.state,
    )


@torch.no_grad()
def _metrics(scores: Tensor, gap: Tensor, whole: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Means over live rows. ahead: score of the better row minus the other's. gap: of their rewards. accuracy: right order; 1/2 a tie."""
    count, ahead = rows.sum().clamp(min=1), (scores[:, :1] - scores[:, 1:]) * gap.sign()

    def mean(values: Tensor) -> Tensor:
        return 2 * live(values, whole).sum() / count

    return {"ahead": mean(ahead), "gap": mean(gap.abs()), "accuracy": mean((ahead.sign() + 1) / 2)}


def regressed(scores: Tensor, gap: Tensor, *, eta: float) -> Tensor:
    """``((s_1 - s_2) / eta - gap)^2`` (REBEL, arXiv 2404.16767).

    scores: ``[N, 2]``, of both rows. gap: ``[N, 1]``, of their rewards, the first's minus the second's. eta: nats for a unit of reward,
    above 0.
    """
    links.positive(eta=eta)
    return ((scores[:, :1] - scores[:, 1:]) / eta - gap) ** 2


def separate(scores: Tensor, gap: Tensor, *, clip: float, largest: float) -> Tensor:
    """``-1/2 sum_i min(c_j rho_i d_i, c_j clip(rho_i) d_i)``, d the gap as each row sees it, j the other row (P3O-V1).

    c_j is rho_j, without gradient and in ``1 / largest .. largest``: a pair that the old policy drew counts as often as the new one would.

    scores, gap: as in ``regressed``, the scores log-ratios to the old policy. clip: how far a ratio may leave 1, both ways. largest: bound
    of c_j.
    """
    weight = _ratio(scores, largest)
    first = surrogates.clipped(scores[:, :1], gap * weight[:, 1:], low=clip, high=clip).values
    return (first + surrogates.clipped(scores[:, 1:], -gap * weight[:, :1], low=clip, high=clip).values) / 2


def joint(scores: Tensor, gap: Tensor, *, clip: float, largest: float) -> Tensor:
    """``-c/2 min(d u, d clip(u, -clip, clip))``, ``u = log rho_1 - log rho_2``, ``c = rho_1 rho_2`` limited as in ``separate`` (P3O-V2).

    scores, gap: as in ``separate``. clip: bound of u, nats. largest: bound of c.
    """
    weighted, ahead = gap * _ratio(scores.sum(1, keepdim=True), largest), scores[:, :1] - scores[:, 1:]
    return -torch.minimum(weighted * ahead, weighted * ahead.clamp(-clip, clip)) / 2


def _ratio(scores: Tensor, largest: float) -> Tensor:
    """``exp(scores)`` in ``1 / largest .. largest``, without gradient."""
    return scores.detach().clamp(-math.log(largest), math.log(largest)).exp()


def row_ratio(of: Callable[[Steps], Tensor] = ratios.per_step, *, also: frozenset[Need] = frozenset()) -> Part:
    """``log pi - log pi_old`` summed over each row, ``[B, 1]`` nats; ``of``: over some of its steps, for which ``also`` is needed.

    of: what is summed. also: needs of ``of`` besides ``old``.
    """
    return Part(lambda steps: of(steps).sum(1, keepdim=True), frozenset({OLD}) | also, "pair")
