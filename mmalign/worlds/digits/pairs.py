"""Preference pairs of digits: the base's own samples, ranked by a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Seed
from mmalign.records import Pair
from mmalign.types import UserError
from mmalign.worlds.digits.data import PROMPTS

__all__ = ["digits_pairs"]


@torch.no_grad()
def digits_pairs(
    pipeline: Any,
    *,
    reward: Callable[..., Tensor] | None = None,
    groups: Count = 300,
    best_of: Count = 8,
    seed: Seed = 0,
    call: dict[str, Any] | None = None,
) -> list[Pair]:
    """For each prompt ``groups`` times: the best of ``best_of`` samples of the pipeline, and the worst of them.

    Ten prompts, so 10 * ``groups`` pairs, the same for one seed; groups without a difference are ties, strength 0.5. With two samples
    to a group a pair is what a person sees who compares two. Imitating the better rows would make a model as good as they are, right
    ``1 - (1 - p)^n`` of the time where the base is right with probability p and the reward makes no mistakes; that is the pairs' own
    ceiling, and methods that also push away from the worse rows may pass it.

    Args:
        pipeline: a digits pipeline, ``digits()``.
        reward: what ranks them; the proxy classifier's probability by default.
        groups: of each prompt. best_of: samples in a group.
        call: arguments of the pipeline's call (10 steps by default).

    Errors: UserError for fewer than two samples or no group.
    """
    from mmalign.worlds.digits.judges import digits_proxy

    if groups < 1 or best_of < 2:
        raise UserError(f"digits_pairs: got groups={groups}, best_of={best_of}, takes 1 or more, and 2 or more")
    rank = reward or digits_proxy()
    rng = torch.Generator().manual_seed(seed)
    pairs: list[list[Pair]] = []
    for prompt in PROMPTS:
        rows = [prompt] * (groups * best_of)
        noise = torch.randn((len(rows), *_latent_shape(pipeline)), generator=rng)
        arguments = {"output_type": "pt", "num_inference_steps": 10, **(call or {})}
        chunks = [pipeline(prompt=rows[: len(part)], latents=part, **arguments).images for part in noise.split(500)]
        images = torch.cat(chunks).float().cpu()
        scores = rank(images, rows).double().view(groups, best_of)
        grouped = images.view(groups, best_of, *images.shape[1:])
        high, low = scores.max(1), scores.min(1)
        tied = torch.where(high.values == low.values, 0.5, 1.0).tolist()
        best, worst = (grouped[torch.arange(groups), end.indices] for end in (high, low))
        pairs.append([Pair(prompt, best[g], worst[g], tied[g], f"{prompt} {g}") for g in range(groups)])
    return [pair for row in zip(*pairs, strict=True) for pair in row]


def _latent_shape(pipeline: Any) -> tuple[int, int, int]:
    side = int(pipeline.transformer.config.sample_size)
    return (int(pipeline.transformer.config.in_channels), side, side)
