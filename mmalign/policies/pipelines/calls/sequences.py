"""Denoisers of which several processes compute each row: diffusers' context parallelism, by which each has a part of the tokens.

A denoiser splits its tokens where it begins and puts them together where it ends (its ``_cp_plan``). In between its attention exchanges
heads for tokens (Ulysses, arXiv 2309.14509), or takes the others' keys and values in turn (ring attention, arXiv 2310.01889), or both, in
rings of processes that each hold a part of the heads (arXiv 2405.07719). Going back, a process keeps of an output's gradient its own part,
so that what it finds of a parameter's gradient is of its own tokens: the sum over processes, which an update takes of all rows anyway, is
the gradient. Of an *input* it would be a part alone, which nobody adds up: no gradient may go through several denoiser calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mmalign.distributed.meshes import mesh_of
from mmalign.types import UserError

RINGS: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {"cuda": ("_native_flash", (torch.bfloat16, torch.float16))}
"""By the device: diffusers' name of what computes a ring's attention and what gradients that has, and the types that it takes. What
``scaled_dot_product_attention`` picks by itself does not say the logarithm of its sum, by which a ring puts its parts together."""


def compute_together(denoisers: Mapping[str, Any], count: int, world: int, place: int, ring: int = 1) -> None:
    """Each row by ``count`` processes, those of neighbouring places. world: how many processes there are. place: of this one. ring: so
    many of those pass keys and values on, the others exchange heads.

    Errors: UserError for a denoiser that diffusers has no plan for, or whose heads they do not divide, and for a ring where none runs.
    """
    from diffusers import ContextParallelConfig, ModelMixin, ParallelConfig

    asked = f"{count}, {ring} of them in a ring" if ring > 1 else f"{count}"
    for denoiser in denoisers.values():
        kind, library = type(denoiser).__name__, isinstance(denoiser, ModelMixin)
        if library and denoiser._parallel_config is not None:  # of an earlier run
            config = denoiser._parallel_config.context_parallel_config
            before = (1, 1) if config is None else (config.ulysses_degree, config.ring_degree)
            if before != (count // ring, ring):
                already = f"the rows of {kind} are spread over {before[0] * before[1]} already, {before[1]} of them in a ring"
                raise UserError(f"devices.sequence: got {asked}, and {already}; takes the same")
            continue
        if count == 1:
            continue
        if not library or denoiser._cp_plan is None:
            takes = "takes a denoiser that has one, such as Flux's or Wan's, or 1"
            raise UserError(f"devices.sequence: got {asked}, and diffusers has no plan for the tokens of {kind}; {takes}")
        if (heads := denoiser.config.num_attention_heads) % (count // ring):
            takes = "takes a number that divides these, or 1" if ring == 1 else "takes a larger ring, or 1"
            raise UserError(f"devices.sequence: got {asked}, and {kind} has {heads} heads; {takes}")
        device = next(denoiser.parameters()).device
        if ring > 1:
            _attend_in_rings(denoiser, device.type, ring)
        mesh = mesh_of(device.type, (world // count, ring, count // ring), ("rows", "ring", "ulysses"))

        def resolved(config: Any, denoiser: Any = denoiser, device: Any = device, mesh: Any = mesh) -> Any:
            """As diffusers' own, on a machine without an accelerator too."""
            denoiser._parallel_config = ParallelConfig(context_parallel_config=config)
            denoiser._parallel_config.setup(place, world, device, mesh=mesh)
            return denoiser._parallel_config

        denoiser._resolve_parallel_config = resolved
        denoiser.enable_parallelism(config=ContextParallelConfig(ring_degree=ring, ulysses_degree=count // ring, mesh=mesh))
        del denoiser._resolve_parallel_config
        denoiser.forward = _in_words(denoiser.forward, count)


def _attend_in_rings(denoiser: Any, device: str, ring: int) -> None:
    """Has a denoiser's attention computed by what a ring can put together. Errors: UserError where there is none, or not in its type."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Backends

    kind, dtype = type(denoiser).__name__, next(denoiser.parameters()).dtype
    if device not in RINGS:
        why = "has no attention in diffusers whose parts a ring could put together"
        raise UserError(f"devices.ring: got {ring}, and this device ({device}) {why}; takes 1, or GPUs ({', '.join(RINGS)})")
    name, types = RINGS[device]
    if dtype not in types:
        takes = " or ".join(str(each).removeprefix("torch.") for each in types)
        raise UserError(
            f"devices.ring: got {ring}, and {kind} computes in {str(dtype).removeprefix('torch.')}; takes policy.dtype: {takes}, or 1"
        )
    active, _ = Backends.get_active_backend()
    denoiser.set_attention_backend(name)
    Backends.set_active_backend(active)  # which is of all models


def _in_words(forward: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The same, and UserError where it cannot share out tokens."""

    @functools.wraps(forward)
    def said(*given: Any, **more: Any) -> Any:
        try:
            return forward(*given, **more)
        except (AssertionError, NotImplementedError, ValueError) as error:
            takes = f"takes sizes, frames and prompts whose tokens divide by {count}, and no attention mask; or 1"
            raise UserError(f"devices.sequence: {' '.join(str(error).split())[:200]}; {takes}") from error

    return said
