"""Combinations of rewards that change as training goes; what they have learned is in every checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign.arguments.ranges import Count, Finite, NotNegative, Positive, Share
from mmalign.combinations._parts import Both, Chain, Combination, Rows, Transforms, chosen, or_missing, table
from mmalign.combinations.algebra import weighted_sum
from mmalign.evaluation.fronts import hypervolume
from mmalign.types import UserError

__all__ = ["constrained", "fairest", "front_member", "hypervolume_weights", "log_barrier"]

Parts = Mapping[str, Tensor]


def constrained(
    *, limits: Mapping[str, Finite], weights: Mapping[str, Finite] | None = None, rate: Positive = 0.05, start: Positive = 1.0,
    most: Positive = 100.0,
    window: Count = 10, transforms: Transforms | None = None,
) -> Combination:  # fmt: skip
    """``(sum_k w_k r_k - sum_c lambda_c c) / (1 + sum_c lambda_c)``, each multiplier raised while its cost is above its limit.

    ``log lambda_c <- log lambda_c + rate * lambda_c * (mean cost - limit_c)``, the mean over the last ``window`` rollouts of the known
    costs; a step of gradient ascent on the Lagrangian in log lambda, before the rollout is scored. At most ``most``.

    Args:
        limits: name of a cost (a reward that counts harm) -> what its mean may be. weights: of the rewards; all that are no costs, with
            1, by default. start: of every lambda.
        rate: of a multiplier, for a rollout. most: that a multiplier may be. window: rollouts whose costs are averaged.

    A row without one of the scores has no reward. Paper: Safe RLHF, https://arxiv.org/abs/2310.12773; with window and normaliser as in
    align-anything's Safe RLHF-V. Deviations: no delay before the first update.

    Errors: UserError for settings out of range.
    """
    if not limits or rate <= 0 or start <= 0 or most < start or window < 1:
        raise UserError(
            f"constrained: got limits={dict(limits)}, rate={rate}, start={start}, most={most}, window={window}, takes one limit or more, "
            "rate and start above 0, most at least start, window of 1 or more"
        )
    multipliers = _Multipliers(limits, rate, start, most, window)
    chain = Chain("constrained", transforms)

    def of(parts: Parts, rows: Rows) -> Tensor:
        parts = chain.apply(parts, rows)
        chosen("constrained", "limits", limits, parts)
        names = chosen("constrained", "weights", [name for name in parts if name not in limits] if weights is None else weights, parts)
        total = sum(parts[name] * (1.0 if weights is None else weights[name]) for name in names)
        price = sum(multipliers.values[name] * parts[name] for name in limits)
        return (total - price) / (1 + sum(multipliers.values.values()))  # type: ignore[return-value]

    return Combination("constrained", of, Both(chain, multipliers))


def fairest(*, of: Sequence[str] | None = None, decay: Share = 0.0, transforms: Transforms | None = None) -> Combination:
    """The reward of the group of people who have the least of it: ``r_u``, u the one with the smallest mean over the rollout.

    ``max_policy min_u E[r_u]``: each rollout is scored for whoever is worst off. of: one reward for each group of people, of one scale.
    decay: of an average of the means over rollouts, so that the choice does not flicker; 0 for this rollout's alone.
    Paper: MaxMin-RLHF, https://arxiv.org/abs/2402.08925. Deviations: the groups' rewards come from the user; nothing is clustered.
    Errors: UserError for a decay outside of 0 to below 1.
    """
    if not 0 <= decay < 1:
        raise UserError(f"fairest.decay: got {decay}, takes 0 to below 1")
    averages, chain = _Means(of, decay), Chain("fairest", transforms)

    def least(parts: Parts, rows: Rows) -> Tensor:
        parts = chain.apply(parts, rows)
        names = chosen("fairest", "of", of, parts)
        means = {name: averages.means[name] if name in averages.means else float(parts[name].detach().nanmean()) for name in names}
        known = [name for name in names if not math.isnan(means[name])]
        return parts[min(known, key=lambda name: means[name])] if known else parts[names[0]]

    return Combination("fairest", least, Both(chain, averages))


def hypervolume_weights(
    *, weights: Mapping[str, NotNegative], worst: Mapping[str, Finite], strength: NotNegative = 1.0, held_out: bool = False,
    transforms: Transforms | None = None,
) -> Combination:  # fmt: skip
    """``(1 + strength * gain) * sum_k w_k r_k``: more where mean rewards have pushed the Pareto front out.

    ``gain``: the volume that the newest point adds to what the best points before it dominate, over that volume (1 for the first).

    Args:
        weights: name -> weight, 0 or more. strength: how much a gain counts, 0 or more.
        worst: name -> the corner that volumes are measured from; what is below it adds nothing.
        held_out: a point is what the rewards came to in an evaluation, on its own prompts and before ``transforms``, and its gain counts
            until the next one; otherwise every rollout is a point, and its own gain counts. The report draws the held-out front of both.

    Paper: Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting, https://arxiv.org/abs/2509.11452, whose front is
    of held-out points. Deviation: the gain is relative, so that it has no units. A row without one of the scores has no reward.

    Errors: UserError for settings out of range, weights and corners of other names, and ``held_out`` without an evaluation of each.
    """
    if not weights or set(weights) != set(worst) or min(weights.values()) < 0 or strength < 0:
        raise UserError(
            f"hypervolume_weights: got weights={dict(weights)}, worst={dict(worst)}, takes a corner for every weight of 0 or more"
        )
    front, chain = _Front(worst, held_out), Chain("hypervolume_weights", transforms)

    def of(parts: Parts, rows: Rows) -> Tensor:
        parts = chain.apply(parts, rows)
        names = chosen("hypervolume_weights", "weights", weights, parts)
        scores, known = table(parts, names)
        total = (scores.new_tensor([weights[name] for name in names])[:, None] * scores).sum(0)
        return or_missing((1 + strength * front.gain) * total, known.all(0))

    return Combination("hypervolume_weights", of, Both(chain, front), hears=front.hear if held_out else None)


def log_barrier(
    *, objective: str, floors: Mapping[str, Finite], strength: Positive = 0.1, most: Positive = 10.0, window: Count = 5,
    transforms: Transforms | None = None,
) -> Combination:  # fmt: skip
    """``r_objective + sum_j w_j r_j`` with ``w_j = strength / (mean r_j - floor_j)``: one reward goes up, others stay above their floors.

    The gradient of ``J_objective + strength sum_j log(J_j - floor_j)`` is that of this sum, where each J is the mean over the last
    ``window`` rollouts. At the floor and below it the weight is ``most``.

    Args:
        objective: the reward that is maximised.
        floors: name -> what its mean shall not fall below; of a run that goes on from another one, a part of what that one reached:
            C-MORL's extension of a Pareto front has ``(1 - b) J_j(parent)``, and runs once for each objective and policy in its archive.
        strength: of the barrier. most: bound of a weight. window: rollouts whose means are averaged.

    A row without one of the scores has no reward.
    Paper: C-MORL: Multi-Objective Reinforcement Learning through Efficient Discovery of Pareto Front, https://arxiv.org/abs/2410.02236,
    the interior-point form of its second stage; recalled, the number too. Its archive: ``front_member``.

    Errors: UserError for an objective with a floor, no floor, and settings out of range.
    """
    if not floors or objective in floors or strength <= 0 or most <= 0 or window < 1:
        raise UserError(
            f"log_barrier: got objective={objective!r}, floors={dict(floors)}, strength={strength}, most={most}, window={window}, takes "
            "floors of other rewards than the objective, strength and most above 0, window of 1 or more"
        )
    recent, chain = _Recent([*floors], window), Chain("log_barrier", transforms)

    def of(parts: Parts, rows: Rows) -> Tensor:
        parts = chain.apply(parts, rows)
        chosen("log_barrier", "objective", [objective], parts)
        total = parts[objective]
        for name in chosen("log_barrier", "floors", floors, parts):
            above = recent.mean(name) - floors[name]
            total = total + (min(most, strength / above) if above > 0 else most) * parts[name]
        return total

    return Combination("log_barrier", of, Both(chain, recent))


def front_member(
    *, plan: str, strength: Positive = 0.1, most: Positive = 10.0, window: Count = 5, transforms: Transforms | None = None
) -> Combination:
    """What the next policy of a Pareto archive is trained on, by the file of ``extend_front`` (``configs/tabular/c_morl``).

    Of the first stage a ``weighted_sum`` with the plan's ``weights``, of the second a ``log_barrier`` for its ``objective`` above its
    ``floors``. plan: the file. strength, most, window: of the barrier.

    Paper: C-MORL, https://arxiv.org/abs/2410.02236, recalled (as ``log_barrier``).

    Errors: UserError for a file without a plan, and as of those two.
    """
    try:
        said = json.loads(Path(plan).read_text(encoding="utf-8"))
        weights, objective, floors = (said[name] for name in ("weights", "objective", "floors"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"front_member.plan: {plan} holds no plan; takes a file of extend_front") from error
    if weights is not None:
        return weighted_sum(weights=weights, transforms=transforms)
    return log_barrier(objective=objective, floors=floors, strength=strength, most=most, window=window, transforms=transforms)


class _Recent:
    """The means of rewards over the last rollouts that knew them."""

    def __init__(self, names: Sequence[str], window: int):
        self.window, self.known = window, {name: list[float]() for name in names}

    def mean(self, name: str) -> float:
        """NaN where nothing is known yet."""
        return sum(self.known[name]) / len(self.known[name]) if self.known[name] else math.nan

    def learn(self, parts: Parts, rows: Rows) -> None:
        for name in chosen("log_barrier", "floors", self.known, parts):
            mean = float(parts[name].nanmean())
            if not math.isnan(mean):
                self.known[name] = [*self.known[name], mean][-self.window :]

    def dump(self) -> dict[str, Any]:
        return {"known": self.known}

    def load(self, state: Mapping[str, Any]) -> None:
        self.known = {name: list(means) for name, means in state["known"].items()}


class _Multipliers:
    """Lagrange multipliers and the costs of the last rollouts."""

    def __init__(self, limits: Mapping[str, float], rate: float, start: float, most: float, window: int):
        self.limits, self.rate, self.most, self.window = limits, rate, most, window
        self.values = dict.fromkeys(limits, start)
        self.costs: dict[str, list[float]] = {name: [] for name in limits}

    def learn(self, parts: Parts, rows: Rows) -> None:
        chosen("constrained", "limits", self.limits, parts)
        for name, limit in self.limits.items():
            mean = float(parts[name].nanmean())
            if math.isnan(mean):
                continue
            self.costs[name] = [*self.costs[name], mean][-self.window :]
            over = sum(self.costs[name]) / len(self.costs[name]) - limit
            step = self.rate * self.values[name] * over
            self.values[name] = min(self.most, self.values[name] * math.exp(max(-50.0, min(50.0, step))))

    def dump(self) -> dict[str, Any]:
        return {"values": self.values, "costs": self.costs}

    def load(self, state: Mapping[str, Any]) -> None:
        self.values, self.costs = dict(state["values"]), {name: list(costs) for name, costs in state["costs"].items()}


class _Means:
    """The mean of each reward over rollouts, averaged exponentially."""

    def __init__(self, names: Sequence[str] | None, decay: float):
        self.names, self.decay = names, decay
        self.means: dict[str, float] = {}

    def learn(self, parts: Parts, rows: Rows) -> None:
        for name in self.names or parts:
            mean = float(parts[name].nanmean()) if name in parts else math.nan
            if not math.isnan(mean):
                before = self.means.get(name, mean)
                self.means[name] = self.decay * before + (1 - self.decay) * mean

    def dump(self) -> dict[str, Any]:
        return {"means": self.means}

    def load(self, state: Mapping[str, Any]) -> None:
        self.means = dict(state["means"])


class _Front:
    """The Pareto front of mean rewards, of rollouts or of ``heard`` evaluations, and what the last point added to it."""

    def __init__(self, corner: Mapping[str, float], held_out: bool):
        self.corner, self.held_out = corner, held_out
        self.points: list[list[float]] = []
        self.gain, self.heard = 0.0, 0

    def learn(self, parts: Parts, rows: Rows) -> None:
        names = chosen("hypervolume_weights", "weights", self.corner, parts)
        if not self.held_out:
            self.add([float(parts[name].nanmean()) for name in names])
        elif not self.heard:
            raise UserError("hypervolume_weights.held_out: got no evaluation, takes a recipe that evaluates before it trains (online)")

    def hear(self, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Takes in those that are new, in their order."""
        for row in evaluations[self.heard :]:
            if odd := [name for name in self.corner if name not in row]:
                raise UserError(f"hypervolume_weights.held_out: got no evaluation of {odd[0]}, takes weights of rewards that are evaluated")
            self.add([math.nan if row[name] is None else float(row[name]) for name in self.corner])
        self.heard = len(evaluations)

    def add(self, point: list[float]) -> None:
        """A point, of which ``gain`` is what it adds; one that is not known adds nothing."""
        self.gain = 0.0
        if any(math.isnan(value) for value in point):
            return
        corner = list(self.corner.values())
        before, after = hypervolume(self.points, corner), hypervolume([*self.points, point], corner)
        self.gain = (after - before) / before if before > 0 else float(after > 0)
        if after > before:
            beaten = [old for old in self.points if all(new >= value for new, value in zip(point, old, strict=True))]
            self.points = [old for old in self.points if old not in beaten] + [point]

    def dump(self) -> dict[str, Any]:
        return {"points": self.points, "gain": self.gain, "heard": self.heard}

    def load(self, state: Mapping[str, Any]) -> None:
        self.points, self.gain = [list(point) for point in state["points"]], state["gain"]
        self.heard = state.get("heard", 0)
