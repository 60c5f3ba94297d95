"""What has to stay in one micro-batch, and how an update is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mmalign.distributed.team import Team
from mmalign.needs import OLD, lacking
from mmalign.training.settings import Devices
from mmalign.training.updates.experience import Experience
from mmalign.types import Feedback, Method, Policy, Rollout, Unit, UserError


def in_units(method: Method, feedback: Feedback, inside: Tensor) -> Tensor:
    """The numbers of the rows ``inside [B]``, the two of a pair side by side where the method compares pairs, ``[R]``."""
    if method.unit != "pair":
        return torch.nonzero(inside).flatten()
    pairs = feedback.pairs if feedback.pairs is not None else torch.zeros(0, 2, dtype=torch.int64)
    return pairs[inside[pairs].all(1)].flatten()


def unit_sizes(unit: Unit, group: Tensor) -> list[int]:
    """How many rows each unit has, of rows that stand side by side by unit; ``group [B]`` says where groups end."""
    if unit == "batch":
        return [len(group)] if len(group) else []
    if unit == "group":
        return group.unique_consecutive(return_counts=True)[1].tolist()
    size = 2 if unit == "pair" else 1
    return [size] * (len(group) // size)


def micro_sizes(unit: Unit, group: Tensor, most: int) -> list[int]:
    """Sizes of micro-batches of whole units: at most ``most`` rows, or one unit where that is more."""
    sizes: list[int] = []
    for size in unit_sizes(unit, group):
        if sizes and sizes[-1] + size <= most:
            sizes[-1] += size
        else:
            sizes.append(size)
    return sizes


def inside_processes(unit: Unit, experience: Experience) -> Tensor:
    """``[R]`` bool: the rows of an experience whose unit one process holds all of. Units of a batch, and some pairs, reach over several."""
    if unit in ("cell", "row"):
        return torch.ones(len(experience.rows), dtype=torch.bool)
    owners = experience.tables.owner[experience.rows].split(unit_sizes(unit, experience.group))
    return torch.cat([(owner == owner[0]).all().expand(len(owner)) for owner in owners] or [torch.zeros(0, dtype=torch.bool)])


def whole_units(unit: Unit, experience: Experience) -> Experience:
    """Of an experience the rows of this process whose units it holds all of; of a batch, which all hold together, the rows it has."""
    inside = inside_processes(unit, experience) | (unit == "batch")
    return replace(experience, rows=experience.rows[inside]).own()


def live_columns(rollout: Rollout, rows: Tensor) -> Tensor:
    """The numbers of the steps in which at least one of these rows counts."""
    return torch.nonzero(rollout.mask[rows].any(0)).flatten()


def refuse_stale(method: Method, staleness: int) -> None:
    """Errors: UserError for rollouts of earlier parameters, where the method has no ratio to them, or lets others draw rows."""
    if staleness and (OLD not in method.needs or method.behaviors):
        why = "lets others draw rows" if method.behaviors else "has no ratio to the parameters that sampled, which would correct for it"
        raise UserError(f"batch.staleness: got {staleness}, and the method {why}; takes 0, or a method with such a ratio (grpo, ppo, rloo)")


@runtime_checkable
class Spread(Protocol):
    """A policy of which several processes can compute a row together. spreads: the key of ``Devices`` that says so, by what they divide."""

    spreads: str

    def compute_together(self, count: int, world: int, place: int, **more: int) -> None:
        """From now on so many do, those of neighbouring places. world: how many processes there are. place: of this one. more: of
        ``sequence``, ``ring``.

        Errors: UserError for a model that cannot be spread so.
        """


def spread(policy: Policy, method: Method, devices: Devices, team: Team) -> None:
    """Has several processes compute each row together, where that is asked for. Errors: UserError where they cannot."""
    key, count = devices.together
    if count > 1 and method.reward_gradient is not None:
        raise UserError(f"devices.{key}: got {count}, and the gradient goes through several calls of the model; takes 1")
    own = policy.spreads if isinstance(policy, Spread) else None
    if count > 1 and own != key:
        which = {"sequence": "denoiser of diffusers", "tensor": "language model of transformers"}[key]
        takes = "1" if own is None else f"1, or devices.{own}"
        raise UserError(f"devices.{key}: got {count}, and {type(policy).__name__} is no {which}; takes {takes}")
    if isinstance(policy, Spread):
        policy.compute_together(count, team.count, team.place, **({"ring": devices.ring} if key == "sequence" and own == key else {}))


def steps_at_once(policy: Policy, method: Method, micro_steps: int | None) -> int | None:
    """``batch.micro_steps``: null is one where each step is a pass of its own anyway (denoising) and the method weighs steps one by one."""
    return 1 if micro_steps is None and policy.kind == "transition" and (method.unit == "cell" or method.by_step) else micro_steps


def refuse_micro_steps(method: Method, micro_steps: int | None) -> None:
    """UserError for a number of steps below 1, and for a method that has to see more than a cell at once."""
    if micro_steps is not None and micro_steps < 1:
        raise UserError(f"micro_steps: got {micro_steps}, takes 1 or more, or null for all steps of a row at once")
    if micro_steps is not None and not (method.unit == "cell" or method.by_step):
        raise UserError(f"micro_steps: got {micro_steps}, and this method has to see each {method.unit} whole; takes null")


def refuse_mismatch(policy: Policy, method: Method, *, units: Sequence[str] = ("cell", "row", "pair", "group", "batch")) -> None:
    """UserError where the method needs what the policy cannot give, or more in one micro-batch than the recipe's ``units``."""
    if lacks := lacking(method, policy.gives):
        raise UserError(f"method: needs {', '.join(lacks)}; this policy gives {', '.join(sorted(policy.gives)) or 'none of them'}")
    if method.behaviors and "behaviors" not in policy.gives:
        names = ", ".join(behavior.name for behavior in method.behaviors)
        raise UserError(f"method: takes rows drawn by {names} too; this policy draws by itself alone")
    if method.unguided and policy.kind == "bound" and "unguided" not in policy.gives:
        raise UserError("policy.guided: rows are sampled with guidance and predicted without, this method takes one policy; takes false")
    if policy.kind not in method.kinds:
        raise UserError(f"method: takes steps of kind {', '.join(sorted(method.kinds))}; this policy gives {policy.kind}")
    if method.unit not in units:
        raise UserError(
            f"method: has to see each {method.unit} at once, and this recipe splits updates elsewhere; takes {' or '.join(units)}"
        )
