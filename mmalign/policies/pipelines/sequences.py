"""Denoisers of which several processes compute each row: diffusers' context parallelism, by which each has a part of the tokens.

A denoiser splits its tokens where it begins and puts them together where it ends (its ``_cp_plan``), and its attention exchanges heads for
tokens in between (Ulysses, arXiv 2309.14509). Going back, a process keeps of an output's gradient its own part, so that what it finds of a
parameter's gradient is of its own tokens: the sum over processes, which an update takes of all rows anyway, is the gradient. Of an *input*
it would be a part alone, which nobody adds up: no gradient may go through several denoiser calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from mmalign.distributed.meshes import mesh_of
from mmalign.types import UserError


def compute_together(denoisers: Mapping[str, Any], count: int, world: int, place: int) -> None:
    """Each row by ``count`` processes, those of neighbouring places. world: how many processes there are. place: of this one.

    Errors: UserError for a denoiser that diffusers has no plan for, or whose heads they do not divide.
    """
    from diffusers import ContextParallelConfig, ModelMixin, ParallelConfig

    for denoiser in denoisers.values():
        kind, library = type(denoiser).__name__, isinstance(denoiser, ModelMixin)
        if library and denoiser._parallel_config is not None:  # of an earlier run
            config = denoiser._parallel_config.context_parallel_config
            if (before := 1 if config is None else config.ulysses_degree) != count:
                raise UserError(f"devices.sequence: got {count}, and the rows of {kind} are spread over {before} already; takes the same")
            continue
        if count == 1:
            continue
        if not library or denoiser._cp_plan is None:
            takes = "takes a denoiser that has one, such as Flux's or Wan's, or 1"
            raise UserError(f"devices.sequence: got {count}, and diffusers has no plan for the tokens of {kind}; {takes}")
        if (heads := denoiser.config.num_attention_heads) % count:
            raise UserError(f"devices.sequence: got {count}, and {kind} has {heads} heads; takes a number that divides these, or 1")
        device = next(denoiser.parameters()).device
        mesh = mesh_of(device.type, (world // count, 1, count), ("rows", "ring", "ulysses"))

        def resolved(config: Any, denoiser: Any = denoiser, device: Any = device, mesh: Any = mesh) -> Any:
            """As diffusers' own, on a machine without an accelerator too."""
            denoiser._parallel_config = ParallelConfig(context_parallel_config=config)
            denoiser._parallel_config.setup(place, world, device, mesh=mesh)
            return denoiser._parallel_config

        denoiser._resolve_parallel_config = resolved
        denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count, mesh=mesh))
        del denoiser._resolve_parallel_config
        denoiser.forward = _in_words(denoiser.forward, count)


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
