"""Methods for whole lists: the rows of a group, in the order of their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmalign.objectives.parts import ANY, Part, Term, live, refuse_kind
from mmalign.objectives.sentences.layout import Layout, side_by_side
from mmalign.objectives.terms.lists import Ranking
from mmalign.types import Feedback, Loss, Method, Steps


def listwise(
    *,
    score: Part,
    value: Callable[[Tensor, Ranking], Tensor],
    weigh: Callable[[Tensor], Tensor],
    terms: Sequence[Term[Ranking]] = (),
    kinds: frozenset[str] = ANY,
) -> Method:
    """``value of a row = value(scores, ranking)``: what the row loses to the rest of its list; plus ``terms``, ``[R, T]`` of its steps.

    score: a part, ``[R, 1 or T]``; ``objectives.scores`` has them. value: ``(scores [R, C], ranking) -> [R, C]``, C columns that are
    compared each by itself. weigh: as in ``types.Method``; with ``weights.sequence_mean`` the loss is the mean over rows. kinds: of
    steps, as far as all terms take them.

    **Layout.** The signal ``[B, 1, 3]`` of a row holds 1 where its reward is known (else 0 in all), the reward, and the number of its
    group; then what terms are told, and find. A row without a reward, without a live step, or alone in its list says nothing, and lists
    stay whole (``unit="group"``).

    Errors: UserError of the loss for other kinds, and where the table misses what is needed.
    """
    layout = Layout(terms)
    kinds = layout.kinds(kinds)

    def signal(feedback: Feedback) -> Tensor:
        known = _comparable(feedback)
        own = torch.stack([known.double(), feedback.rewards.detach().nan_to_num(0.0), feedback.group.double()], dim=-1)
        numbers = torch.cat([own, *layout.extras(feedback)], 1)
        return torch.where(known[:, None], numbers, 0.0)[:, None]

    def rankings(steps: Steps, signal: Tensor, wide: bool) -> Callable[[Tensor, Tensor], Ranking]:
        there = steps.mask if wide else steps.mask.any(1, keepdim=True)
        ranking = _ranking(signal, there & (signal[:, :, 0] != 0))
        return lambda extras, surveyed: ranking._replace(extras=extras, surveyed=surveyed)

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        known = rankings(steps, signal, score.of(steps).shape[1] > 1)
        return side_by_side([signal, *(values[:, None].to(signal) for values in layout.survey(known, steps, signal[:, 0, 3:]))])

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, kinds)
        scores = score.of(steps)
        known = rankings(steps, signal, scores.shape[1] > 1)
        numbers = layout.split(signal[:, 0, 3:])
        ranking = known(signal[:, 0, :0], signal[:, 0, :0])
        values = value(scores, ranking).expand_as(steps.log_probs)
        for term, own in zip(terms, numbers, strict=True):
            values = values + term.of(steps, known(*own))
        return Loss(live(values, steps.mask), _metrics(scores, ranking, steps), steps.mask.any(1).sum())

    return Method(
        signal=signal,
        loss=loss,
        weigh=weigh,
        needs=layout.needs(score),
        unit="group",
        kinds=kinds,
        keep=_comparable,
        reads=layout.reads(),
        survey=survey if layout.surveys else None,
        survey_needs=layout.survey_needs(),
        state=layout.state(),
    )


def _comparable(feedback: Feedback) -> Tensor:
    """``[B]`` bool: rows with a known reward in a list that has another such row."""
    known = ~feedback.rewards.isnan()
    same = (feedback.group[:, None] == feedback.group[None, :]) & known[None, :]
    return known & (same.sum(1) > 1)


def _ranking(signal: Tensor, known: Tensor) -> Ranking:
    """``known [R, C]``: scores that say something."""
    rewards, group = signal[:, 0, 1], signal[:, 0, 2]
    same = (group[:, None] == group[None, :])[..., None] & known[:, None] & known[None, :]
    below = same & (rewards[None, :] < rewards[:, None])[..., None]
    above = same & (rewards[None, :] > rewards[:, None])[..., None]
    best = known.any(1) & ~above.any(2).any(1) & below.any(2).any(1)
    return Ranking(rewards[:, None], below, same & ~above, best[:, None], signal[:, 0, :0], signal[:, 0, :0])


@torch.no_grad()
def _metrics(scores: Tensor, ranking: Ranking, steps: Steps) -> dict[str, Tensor]:
    """Means over live rows, as 0-d tensors.

    accuracy: pairs of a row with worse ones in the order of their rewards; equal scores, and a row with none below, count one half.
    """
    right = ((scores[:, None] - scores[None, :]).sign() + 1) / 2
    count = ranking.below.sum((1, 2))
    per_row = torch.where(count > 0, live(right, ranking.below).sum((1, 2)) / count.clamp(min=1), 0.5)
    rows = steps.mask.any(1)
    return {"accuracy": live(per_row, rows).sum() / rows.sum().clamp(min=1)}
