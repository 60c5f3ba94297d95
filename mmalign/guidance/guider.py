"""Guidance between adapters for diffusers' modular pipelines, through their own seam: a guider.

``pipe.update_components(guider=adapter_guidance(scale=1.6))``. The base of its class is diffusers', so it has a file that nothing imports
before it is asked for.
"""

from __future__ import annotations

from typing import Any

from mmalign.arguments.ranges import Finite, Proportion
from mmalign.guidance._checks import check_finite, check_interval
from mmalign.types import UserError

__all__ = ["adapter_guidance"]


def adapter_guidance(
    *,
    scale: Finite = 1.6,
    guidance_scale: Finite = 7.5,
    base: str = "base",
    aligned: str = "current",
    start: Proportion = 0.0,
    stop: Proportion = 1.0,
) -> Any:
    """A guider that extrapolates between a model with and without an adapter, with classifier-free guidance of both.

    Paper: Reinforcement Learning Guidance, https://arxiv.org/abs/2508.21016

        u = cfg(base) + scale (cfg(aligned) - cfg(base)),   cfg(u) = u_negative + guidance_scale (u_prompt - u_negative)

    Args:
        scale, start, stop: as in ``rlg``.
        base, aligned: ``base`` (adapters off), ``current`` or the name of an adapter.
        guidance_scale: of classifier-free guidance; 1 asks about the prompt alone.

    Cost: up to four evaluations a step; a model whose part is nothing is not asked. The denoiser is as it was after each prediction;
    where one raises, the next call puts it back first.

    Errors: UserError for an interval outside 0..1, a scale that is not finite, and what is no name.
    """
    check_interval("adapter_guidance", start, stop)
    check_finite("adapter_guidance", scale=scale, guidance_scale=guidance_scale)
    for key, model in {"base": base, "aligned": aligned}.items():
        if not isinstance(model, str):
            raise UserError(f"adapter_guidance.{key}: got {type(model).__name__}, takes 'base', 'current' or the name of an adapter")
    from mmalign.guidance._adapter_guidance import AdapterGuidance

    return AdapterGuidance(scale=scale, guidance_scale=guidance_scale, base=base, aligned=aligned, start=start, stop=stop)
