"""A reward of latents: nothing is decoded for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.facts import Differentiable
from mmalign.arguments.parameters import accepted
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import Level, UserError

OF_LATENTS = True


def on_latents(*, of: Callable[..., Any], differentiable: bool = True) -> Scorer:
    """Reward ``of(latents [B, ...], prompts)`` of what a diffusers pipeline decodes its outputs from; in that function's range.

    The latents are the pipeline's last ones, as its denoiser sees them (packed where it packs them, normalised as they are), so a function
    of them is one of that model and size. Where every reward of a run is of latents, its rollouts decode nothing, and gradients of rewards
    do not pass through the decoder. Evaluations decode as ever, and score the latents of what they show.

    of: ``(latents, prompts, **columns) -> [B]``, or ``{part: [B]}``; NaN where there is no score. Or ``trained``, of a reward model that
        reads ``noisy_latents``: in guidance by ``nrg`` it is told the level of each step, under ``branches.candidates`` it is shown the
        noisy latents of each row and told their level, and elsewhere latents are clean.
    differentiable: whether a gradient arrives at the latents; it does not where ``of`` says so of itself.
    No weights and no preprocessing of its own. Source: ours; latent reward models are trained this way (LRM, arXiv:2502.01051).

    Errors: UserError for what is no function; from a run whose policy has no latents.

    Examples:
        >>> calm = mm.rewards.on_latents(of=lambda latents, prompts: -latents.flatten(1).square().mean(1))
        >>> calm(torch.tensor([[[[0.0]]], [[[2.0]]]]), ["a", "b"]).tolist(), calm.of_latents
        ([-0.0, -4.0], True)
    """
    if not callable(of):
        raise UserError(f"on_latents.of: got {type(of).__name__}, takes a function of latents")
    own = of.latents if isinstance(of, Scorer) else None
    if isinstance(of, Scorer) and own is None:
        raise UserError(f"on_latents.of: {of.name} scores outputs; takes a function of latents, or trained, of a run on noisy_latents")

    def score(latents: Any, prompts: list[Any], **columns: Any) -> Any:
        if not isinstance(latents, Tensor) or len(latents) != len(prompts):
            got = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise UserError(f"on_latents: got {got} for {len(prompts)} prompts, takes latents [batch, ...]")
        if own is not None:
            shown, level = _noisy(latents, columns.pop("noisy", None), columns.pop("level", None))
            return own(shown, prompts, level, columns)
        return of(latents, prompts, **accepted(of, columns))

    known = differentiable and not (isinstance(of, Differentiable) and not of.differentiable)
    return Scorer("on_latents", score, differentiable=known, reads=columns_read(of), of_latents=OF_LATENTS)


def _noisy(latents: Tensor, noisy: list[Tensor] | None, level: Any) -> tuple[Tensor, Level | None]:
    """What is judged at a level: the latents, or the noisy ones of rows, ``noisy``, with ``level`` a (signal, noise) for each."""
    if noisy is None:
        return latents, level
    return torch.stack(noisy).to(latents), Level(*torch.tensor(level, dtype=torch.float64).unbind(1))
