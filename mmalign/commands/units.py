"""What a method's numbers come to in nats for one model and one size: where its clip acts, and what a nat of KL or of a margin costs.

Public code for images and videos divides by the D numbers of a latent, so that its clip 1e-4 and its beta 5000 mean something else for
each model, resolution and length. Nothing is looked up: the method's own loss is asked, on two rows with the model's D, std and dt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.config import build_part
from mmalign.config.overrides import override
from mmalign.needs import kinds
from mmalign.policies.inspecting.trajectory import Trajectory, trajectory
from mmalign.policies.settings import Schedule
from mmalign.samplers import kernels
from mmalign.samplers.windows import all_but_last
from mmalign.types import Feedback, Method, Steps, UserError

SEARCHED = 1e-9, 1e9  # nats of a step between which a clip is looked for
KNOWN = frozenset({"old", "refs", "kls", "std", "dt", "noise", "drift", "adjoint"})


def of_named(
    name: str, changes: Sequence[str], model: str, sizes: Mapping[str, int | None], steps: int | None, kind: str | None
) -> list[str]:
    """The lines of a method by its name, with keywords as ``key=value``. Errors: UserError as of ``lines``, and for a wrong keyword."""
    node: dict[str, Any] = {"method": {"use": name}}
    for change in changes:
        override(node, f"method.{change}")
    method = build_part(node, "method")
    if not isinstance(method, Method):
        raise UserError(f"--model: {name} is no method, and only a method's numbers are converted")
    return lines(method, model, sizes, steps=steps, kind=kind)


def lines(method: Method, model: str, sizes: Mapping[str, int | None], *, steps: int | None = None, kind: str | None = None) -> list[str]:
    """What a method means for a model, a line each.

    sizes: height, width, num_frames of its call; None leaves the model's own. kind: the pipeline's class, where nothing else tells it.
    Errors: UserError for a method without anything to convert, and for a model of which too little is known.
    """
    schedule = Schedule() if steps is None else Schedule(steps=steps)
    call = {"num_inference_steps": schedule.steps, **{name: size for name, size in sizes.items() if size is not None}}
    found = trajectory(model, call, schedule.kernel or kernels.flow_sde(noise_level=0.7), schedule.window or all_but_last(), kind=kind)
    size = " x ".join(str(value) for name, value in sizes.items() if value is not None) or "its own size"
    head = f"{found.name} at {size}: a latent of {' x '.join(map(str, found.shape))} = {found.event_size:,} numbers"
    transition = "transition" in method.kinds
    head += f"; {len(found.std)} of {found.steps} steps are trained" if transition else ""
    said = [*(_clips(method, found) if transition else _margins(method, found)), *_penalties(method, found)]
    if not said:
        raise UserError("--model: this method has no clip, no KL and no margin to convert; takes one on denoising steps or errors")
    return [head, *said]


def _table(method: Method, found: Trajectory, shift: Tensor) -> Steps:
    """Two rows, ``shift [2, T]`` nats away from where they were sampled, and where every reference is."""
    needs = method.needs | method.survey_needs
    if unknown := sorted(str(need) for need in needs if need.kind not in KNOWN):
        raise UserError(f"--model: what {', '.join(unknown)} would be is not known without rows, so this method cannot be converted")
    zero = torch.zeros_like(shift)
    facts = {"std": found.std, "dt": found.dt, "noise": found.dt.cumsum(0).flip(0)}
    wanted = kinds(needs)
    return Steps(
        log_probs=shift,
        mask=torch.ones_like(shift, dtype=torch.bool),
        old=zero,
        refs={need.name: zero for need in needs if need.kind == "refs"},
        kls={need.name: zero.clone().requires_grad_() for need in needs if need.kind == "kls"},
        facts={name: fact.expand_as(shift) for name, fact in facts.items() if name in wanted},
        event_size=found.event_size,
        kind="transition" if "transition" in method.kinds else "bound",
        terms={name: zero for name in ("drift", "adjoint") if name in wanted},
    )


def _signal(method: Method) -> Tensor:
    """Of a better row and a worse one."""
    rewards, group, ones = torch.tensor([1.0, 0.0]).double(), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    pairs, strength = torch.tensor([[0, 1]]), torch.ones(1).double()
    return method.signal(Feedback(rewards, group, labels=rewards, lengths=ones, pairs=pairs, strength=strength))


def _slopes(method: Method, found: Trajectory, shift: Tensor) -> Tensor:
    """``[2, T]``: the loss by each log-probability; the better row is so far up, the worse one so far down."""
    own = (shift * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)).requires_grad_()
    values = method.loss(_table(method, found, own), _signal(method)).values
    (slopes,) = torch.autograd.grad(values.sum(), own)
    return slopes


def _clips(method: Method, found: Trajectory) -> list[str]:
    """How far a step's log-probability goes before its gradient ends."""
    if method.unit != "cell" or "old" not in kinds(method.needs):
        return []
    low, high = (torch.full((2, len(found.std)), bound, dtype=torch.float64) for bound in SEARCHED)
    if bool((_slopes(method, found, low) == 0).any()) or bool((_slopes(method, found, high) != 0).any()):
        return []
    for _ in range(120):  # halves the interval in the logarithm each time
        middle = (low * high).sqrt()
        over = _slopes(method, found, middle) == 0
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return [
        f"clip, {name} row: a step's gradient ends {span(row)} nats from where it was sampled ({span(row / found.event_size)} a number), "
        f"a trajectory's {row.sum():.3g} nats"
        for name, row in (("a better", high[0]), ("a worse", high[1]))
    ]


def _margins(method: Method, found: Trajectory) -> list[str]:
    """What a nat of a bound's margin is worth where both rows are alike."""
    if method.unit != "pair":
        return []
    slope = float(_slopes(method, found._replace(std=found.std[:1], dt=found.dt[:1]), torch.zeros(2, 1).double())[0].abs().sum())
    beta = 2 * slope / 2  # the value stands in both rows of the pair, and a logistic cost's slope is beta / 2
    return [
        f"margin: a nat (half a squared error, summed over the latent) moves the logit by {beta:.3g}, so it is 1 at {1 / beta:.3g} nats "
        f"({1 / beta / found.event_size:.3g} a number)"
    ]


def _penalties(method: Method, found: Trajectory) -> list[str]:
    """What a nat of KL costs in a step."""
    table = _table(method, found, torch.zeros(2, len(found.std)).double().requires_grad_())
    values = method.loss(table, torch.zeros_like(_signal(method))).values
    said = []
    for name, kl in table.kls.items():
        (slope,) = torch.autograd.grad(values.sum(), kl, retain_graph=True, allow_unused=True)
        if slope is not None and bool(slope.any()):
            said.append(
                f"KL to {name}: a nat in one step costs {span(slope[0])} of an advantage, and one number's part {_scaled(slope[0], found)}"
            )
    return said


def _scaled(slope: Tensor, found: Trajectory) -> str:
    return span(slope * found.event_size)


def span(values: Tensor) -> str:
    """One number, or the first and the last of several that differ."""
    first, last = float(values[0]), float(values[-1])
    return f"{first:.3g}" if abs(first - last) <= 1e-6 * abs(first) else f"{first:.3g} to {last:.3g}"
