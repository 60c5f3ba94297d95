"""Steps that teach nothing: what cannot teach is refused before a run starts, what did not is counted, said, and ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import MASK
from mmalign.samplers.assignment import assignment, drawn_by
from mmalign.training.settings import Batch
from mmalign.training.updates.method_state import unchanged
from mmalign.training.updates.units import in_units
from mmalign.types import Feedback, Method, Oracle, UserError

NO_ROW = "no row is worth an update"
NO_SIGNAL = "no row has a signal: all rewards that are compared are alike"
NOT_FINITE = "the gradient is not finite, so the update was skipped (float16 weights? take bfloat16 or float32, or a lower rate)"
NO_GRADIENT = "the gradient is 0"


def why_dead(row: Mapping[str, float]) -> str:
    """Why a step taught nothing, "" where some update of it did. row: as the recipes log it."""
    if not row["updates"]:
        return NO_ROW
    if row["live"]:
        return ""
    if row["skipped"]:
        return NOT_FINITE
    return NO_GRADIENT if row["signal_zero"] < 1 else NO_SIGNAL


def counted(state: dict[str, Any], row: Mapping[str, float]) -> str:
    """Counts a step in ``state`` (``dead``: why -> steps; ``dead_in_a_row``) and says why it taught nothing, "" where it did not."""
    why = why_dead(row)
    if why:
        state["dead"] = {**state["dead"], why: state["dead"].get(why, 0) + 1}
    state["dead_in_a_row"] = state["dead_in_a_row"] + 1 if why else 0
    return why


def summed_up(dead: Mapping[str, int]) -> dict[str, Any]:
    """Of a run's summary, where there are any: how many ``dead_steps``, and the most frequent reason, ``dead_because``."""
    if not dead:
        return {}
    return {"dead_steps": sum(dead.values()), "dead_because": max(dead, key=lambda why: dead[why])}


def refuse_silent(
    method: Method, batch: Batch, rewards: Sequence[str], *, oracle: Oracle | None, pairs: Callable[[Feedback], Feedback]
) -> None:
    """Errors: UserError where no rewards whatever would give a step of this size a signal (groups of one, which GRPO centres to 0).

    pairs: makes those of a method that compares pairs.
    """
    who = assignment(batch.group, method.behaviors)
    group = torch.arange(batch.prompts).repeat_interleave(len(who))
    rows, rng = len(group), torch.Generator().manual_seed(0)
    scores = {name: torch.rand(rows, generator=rng, dtype=torch.float64) for name in rewards}
    wins = torch.rand(rows, rows, generator=rng, dtype=torch.float64) if oracle is not None else None
    drawn = drawn_by(who.repeat(batch.prompts), method.behaviors)
    total, lengths = torch.stack(list(scores.values())).sum(0), torch.full((rows,), 2)
    feedback = Feedback(total, group, parts=scores, lengths=lengths, wins=wins, drawn=drawn)
    larger = replace(feedback, rewards=100 * total, parts={name: 100 * score for name, score in scores.items()})  # some ask for a gap
    paired = pairs if method.unit == "pair" else lambda one: one
    if _trial(method, lambda: not any(_teaches(method, paired(one)) for one in (feedback, larger))):
        raise UserError(
            f"batch: with prompts: {batch.prompts} and group: {batch.group} this method has no signal, whatever the rewards are; "
            f"takes {'group: 2 or more' if batch.group == 1 else 'a larger batch'}"
        )


def refuse_unknown(method: Method, batches: Iterator[Feedback], most: int = 16, *, key: str = "records") -> None:
    """Errors: UserError where none of the first ``most`` batches of records says anything that the method learns from."""
    rows, feedback = 0, None
    for _, feedback in zip(range(most), batches, strict=False):
        if not _trial(method, lambda: not _teaches(method, feedback)):  # noqa: B023 (asked at once)
            return
        rows += len(feedback.rewards)
    if feedback is not None:
        raise UserError(f"{key}: the first {rows} rows say nothing that this method learns from: {_lacks(method, feedback)}")


def _lacks(method: Method, feedback: Feedback) -> str:
    """What such records would have to have."""
    random = torch.rand(len(feedback.rewards), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scored, known = replace(feedback, rewards=random), feedback.rewards[~feedback.rewards.isnan()]
    if not len(known) and _trial(method, lambda: _teaches(method, scored)):
        return "they have no scores; takes records with a score for each output"
    if feedback.labels is None and _trial(method, lambda: _teaches(method, replace(scored, labels=(random > 0.5).double()))):
        return "they have no labels; takes thumbs up and down"
    if feedback.labels is not None:
        return "they are labels of single outputs; takes pairs or rankings with a score for each output"
    return (
        f"they have {len(known.unique()) or 'no'} different score{'s' * (len(known.unique()) != 1)}; takes scores that differ in a record"
    )


def _trial(method: Method, question: Callable[[], bool]) -> bool:
    """The answer, with the method's state as it was before. False where the method refuses the question itself."""
    try:
        with unchanged(method):
            return question()
    except UserError:  # what was made up here does not fit; the first real rollout is refused with its own words, if it does not
        return False


def _teaches(method: Method, feedback: Feedback) -> bool:
    """Whether some row that an update would take has a signal. What the method reads of a rollout's steps is made up."""
    feedback = replace(feedback, tables={**_made_up(method, len(feedback.rewards)), **feedback.tables})
    signal = method.signal(feedback)
    keep = torch.ones(len(signal), dtype=torch.bool) if method.keep is None else method.keep(feedback)
    rows = in_units(method, feedback, keep)
    return bool((signal[rows] != 0).any())


def _made_up(method: Method, rows: int) -> dict[Any, Tensor]:
    rng = torch.Generator().manual_seed(1)
    tables = {need: torch.rand(rows, 2, generator=rng, dtype=torch.float64) for need in sorted(method.reads, key=str)}
    return {need: torch.ones(rows, 2, dtype=torch.bool) if need == MASK else table for need, table in tables.items()}
