"""Methods that regress a denoiser's prediction on a target that a reward moves, at several noise levels of each clean row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmalign.needs import REALISM, REALISM_OF_GIVEN
from mmalign.objectives import weights
from mmalign.objectives.parts import Part, live, live_mean, refuse_kind
from mmalign.objectives.terms import matching as errors
from mmalign.types import Feedback, Loss, Method, Move, Need, Steps, Unit

BOUND = frozenset({"bound"})


def matching(  # the parts of a sentence
    *,
    score: Callable[[Feedback], Tensor],
    match: Callable[[Steps, Tensor], Tensor],
    needs: frozenset[Need] = frozenset(),
    penalties: Sequence[Part | None] = (),
    unit: Unit = "cell",
    kinds: frozenset[str] = BOUND,
    moves: tuple[Move, ...] = (),
    sampled_by: str = "current",
    unguided: bool = False,
    keep: Callable[[Feedback], Tensor] | None = None,
) -> Method:
    """``values = match(steps, score) + sum of penalties``, and the mean over rows of the mean over a row's noise draws.

    score: Feedback of the whole rollout -> what the reward says of each row, ``[B]``, or several numbers, ``[B, S]``.
    match: (steps, score ``[B, 1]`` or ``[B, 1, S]``) -> ``[B, T]``.
    needs: what ``match`` needs. penalties: parts; None counts nothing.
    unit, kinds, moves: as in ``types.Method``.
    sampled_by, unguided, keep: as in ``types.Method``.

    Errors: UserError of the loss for a kind of steps that it does not accept.

    Metrics: ``error``, the mean squared error of the prediction per scalar of the event; ``distance``, of bounds, the mean squared
    distance to ``ref`` where it is there.
    """
    parts = [part for part in penalties if part is not None]

    def signal(feedback: Feedback) -> Tensor:
        numbers = score(feedback).detach().double()
        return numbers[:, None]

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, kinds)
        values = match(steps, signal)
        for part in parts:
            values = values + part.of(steps)
        with torch.no_grad():
            metrics = {"error": live_mean(errors.error(steps), steps.mask)} if steps.kind == "bound" else {}
            if steps.kind == "bound" and "ref" in steps.kls:
                metrics["distance"] = live_mean(errors.distance(steps, "ref"), steps.mask)
        return Loss(live(values.expand_as(steps.mask), steps.mask), metrics)

    return Method(
        signal=signal,
        loss=loss,
        weigh=weights.sequence_mean,
        needs=needs.union(*(part.needs for part in parts)),
        unit=unit,
        kinds=kinds,
        keep=keep,
        moves=moves,
        sampled_by=sampled_by,
        unguided=unguided,
    )


def denoised(*, classify: float = 0.0) -> Method:
    """``|y - v|^2 / D``, the mean over rows and noise draws: the training loss of a denoiser, on every row, whatever its reward.

    classify: weight of the loss of a classifier on its features beside it (``terms.matching.classified``); 0: there is none.
    """

    def match(steps: Steps, signal: Tensor) -> Tensor:
        return errors.error(steps) + classify * errors.classified(steps) if classify else errors.error(steps)

    needs = frozenset({REALISM, REALISM_OF_GIVEN}) if classify else frozenset[Need]()
    return matching(score=lambda feedback: torch.ones_like(feedback.rewards), match=match, needs=needs)
