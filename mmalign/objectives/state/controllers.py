"""State of reinforcement learners that lasts from rollout to rollout: explicit, and in every checkpoint (``dump`` and ``load``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmalign.types import UserError


class RunningSpread:
    """Mean and standard deviation of all rewards seen (parallel Welford); of known values only."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Takes in ``values`` of any shape, NaN left out."""
        seen = values.detach().double()[~values.isnan()]
        if not seen.numel():
            return
        count, mean = seen.numel(), float(seen.mean())
        apart, total = mean - self.mean, self.count + count
        self.squares += float(((seen - mean) ** 2).sum()) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    @property
    def std(self) -> float:
        """With n - 1; 1 where fewer than two values were seen, or all were equal."""
        std = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return std if std > 1e-6 * abs(self.mean) else 1.0

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


class CriticFirst:
    """The spread of rewards, and how many rollouts there were: in the first ``rollouts`` of them only the critic learns."""

    def __init__(self, rollouts: int):
        if rollouts < 0:
            raise UserError(f"critic_first: got {rollouts}, takes 0 rollouts or more")
        self.rollouts, self.seen, self.spread = rollouts, 0, RunningSpread()

    def update(self, rewards: Tensor) -> None:
        """Takes in the rewards ``[B]`` of a rollout."""
        self.seen += 1
        self.spread.update(rewards)

    @property
    def critic_alone(self) -> bool:
        """Whether the last rollout that was taken in is one of those."""
        return self.seen <= self.rollouts

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.spread.dump(), "seen": self.seen}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.spread.load(state)
        self.seen = state["seen"]


class AdaptiveKL:
    """A KL weight that is raised while the KL is above its target, and lowered below it (arXiv 1909.08593, sec. 2.2).

    ``beta <- beta (1 + rate * clip((KL - target) / target, -0.2, 0.2))``, KL in nats of a whole row. Without a target it stays.
    """

    def __init__(self, *, beta: float, target: float | None, rate: float = 0.1):
        if beta < 0 or (target is not None and target <= 0):
            raise UserError(f"beta, target_kl: got {beta} and {target}, takes 0 or more, and a number of nats above 0 or None")
        self.beta, self.target, self.rate = beta, target, rate

    def update(self, kl: Tensor) -> None:
        """Takes in the KL of each row that counts, ``[R]`` nats."""
        if self.target is not None and kl.numel():
            error = (float(kl.detach().double().mean()) - self.target) / self.target
            self.beta *= 1 + self.rate * max(-0.2, min(0.2, error))

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"beta": self.beta}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.beta = state["beta"]


class AdaptiveShare:
    """A share that grows by ``rate`` when a mean is above all of those before it, and shrinks by it when it is below them all (GARDO).

    It begins at ``start``, stays within ``low`` .. ``high``, and is compared with the last ``window`` means.
    """

    def __init__(self, *, start: float, low: float, high: float, rate: float = 0.1, window: int = 20):
        self.share, self.low, self.high, self.rate, self.window = start, low, high, rate, window
        self.means = list[float]()

    def update(self, values: Tensor) -> float:
        """Takes in ``values`` of any shape, and returns the share; it stays where there are none."""
        if values.numel():
            mean = float(values.detach().double().mean())
            if self.means and mean > max(self.means):
                self.share *= 1 + self.rate
            elif self.means and mean < min(self.means):
                self.share *= 1 - self.rate
            self.share = min(max(self.share, self.low), self.high)
            self.means = [*self.means, mean][-self.window :]
        return self.share

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"share": self.share, "means": list(self.means)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.share, self.means = state["share"], list(state["means"])


class Together:
    """Several states as one."""

    def __init__(self, **states: Any):
        self.states: dict[str, Any] = states

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {name: state.dump() for name, state in self.states.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        for name, own_state in self.states.items():
            own_state.load(state[name])


def rows(table: Tensor, inside: Tensor) -> Tensor:
    """Sums of ``[B, T]`` over each row that has a cell inside, ``[R]``.

    table: of numbers that are summed. inside: ``[B, T]`` bool, cells that count.
    """
    return table.sum(1)[inside.any(1)]
