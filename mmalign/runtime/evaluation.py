"""The same prompts and seeds, judged every so often: what a person would get from the model now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.runtime.feedback import ask
from mmalign.types import Policy

SEED = 2**40  # far from every seed that training draws its generators from


class Evaluation(NamedTuple):
    """``metrics``: means by name, with ``NAME_se``. ``grid``: ``[prompts, columns, C, H, W]`` in 0..1, or None for no images."""

    metrics: dict[str, float]
    grid: Tensor | None


@torch.no_grad()
def evaluate(
    policy: Policy, prompts: list[str], *, samples: int, asked: Mapping[str, Callable[..., Any]], metrics: Mapping[str, Callable[..., Any]],
    using: str = "current", columns: int = 8, call: Mapping[str, Any] | None = None,
) -> Evaluation:  # fmt: skip
    """``samples`` outputs of every prompt at fixed seeds, from the named parameter set, with the sampler that users have.

    asked: rewards and judges, averaged over rows (missing scores left out, and counted in ``NAME_missing``). metrics: functions
    ``(outputs, prompts) -> {name: number}`` of the whole set. call: arguments of the generation, such as more steps.
    """
    rows = [prompt for prompt in prompts for _ in range(samples)]
    seeds = [SEED + number for number in range(len(rows))]
    with policy.using(using):
        outputs = policy.generate(rows, seeds, **(call or {}))
    found: dict[str, float] = {}
    for name, scores in ask(asked, outputs, rows).items():
        known = scores[~scores.isnan()]
        found[name] = float(known.mean()) if len(known) else float("nan")
        found[f"{name}_se"] = float(known.std() / len(known) ** 0.5) if len(known) > 1 else float("nan")
        if len(known) < len(scores):
            found[f"{name}_missing"] = float(len(scores) - len(known))
    for measure in metrics.values():
        found.update(measure(outputs, rows))
    image = isinstance(outputs, Tensor) and outputs.ndim == 4
    grid = outputs.unflatten(0, (len(prompts), samples))[:, :columns].float().cpu().clamp(0, 1) if image else None
    return Evaluation(found, grid)
