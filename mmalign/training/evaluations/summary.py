"""A run in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmalign.runs import pixels, reliability, tokens
from mmalign.training.evaluations.evaluation import EvaluationPlan
from mmalign.training.rollouts import dead_steps
from mmalign.training.updates import not_finite

OF_KL = ("kl", "kl_se", "kl_missing")  # of evaluations: on their page and in their log, and in the summary once
APART = (pixels.PREFIX, reliability.PREFIX, tokens.PREFIX)  # on the page and in the log alone


def read_by_people(names: Iterable[str]) -> list[str]:
    """The numbers of an evaluation that lines and summaries show; the log and the report have those of pixels, tokens and bins besides."""
    of_people = lambda name: name not in ("step", *OF_KL) and not name.startswith(APART)  # noqa: E731
    return [name for name in names if of_people(name)]


def summarise(state: Mapping[str, Any], *, seed: int, status: str, plan: EvaluationPlan) -> dict[str, Any]:
    """A run in a few numbers: every evaluated one before training and after it, and what it cost; NaN is missing.

    After: the last evaluation, or the best one where the run kept it.
    """
    rows = state["evaluations"]
    before, after = rows[0], next((row for row in rows if row["step"] == state.get("best_step")), rows[-1])
    names = read_by_people({**before, **after})
    numbers = {f"{name}_{when}": row.get(name, math.nan) for when, row in (("before", before), ("after", after)) for name in names}
    best = {"best_step": state["best_step"]} if "best_step" in state else {}
    spread = {"spread_ratio": after["spread_ratio"]} if "spread_ratio" in after else {}
    shifts = pixels.shifts(rows[: rows.index(after) + 1])
    moved = {"pixels_moved": [f"{shift.name} since step {shift.step}" for shift in shifts]} if shifts else {}
    return {
        "seed": seed, "status": status, "steps": state["step"], "rewards": list(plan.rewards), "judges": list(plan.judges), **numbers,
        "kl": after["kl"], "train_seconds": round(state["train_seconds"], 2), **state["facts"], **best, **spread, **moved,
        **dead_steps.summed_up(state.get("dead", {})), **not_finite.summed_up(state.get("not_finite", {})),
    }  # fmt: skip


def known(value: float | None) -> str:
    """A number of the summary in a line."""
    return "missing" if value is None or math.isnan(value) else f"{value:.3f}"


def best_of(scores: Sequence[float]) -> int:
    """The place of the first highest score; NaN is lower than any number."""
    return max(range(len(scores)), key=lambda place: -math.inf if math.isnan(scores[place]) else scores[place])
