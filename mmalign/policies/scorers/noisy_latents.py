"""A pipeline's denoiser as the reader of a reward model: what it holds of noisy latents, at any noise level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.pipelines.calls.trained_levels import training_schedule
from mmalign.policies.pipelines.denoising.denoising_errors import Noised
from mmalign.policies.pipelines.rollouts.latents import latents
from mmalign.types import EVERY, Level, Rollout, UserError

__all__ = ["NoisyLatentsReader", "noisy_latents"]


def noisy_latents(
    of: DiffusersPolicy, *, layer: str | None = None, times: Literal["uniform", "logit_normal"] = "uniform"
) -> NoisyLatentsReader:
    """What a denoiser holds of latents at a noise level, for a reward model that is asked at any step of sampling; differentiable in them.

    Trained on finished outputs: each is encoded, and brought to a level that is drawn for its record, by a noise of its own. Rows of a
    record share the level alone: of one noise nothing would be left in their difference, and what was learned from it would hold for no
    single latent (in a Gaussian world ``nrg`` then goes several times too far).
    The features are the hidden states behind a layer, their mean over all places (tokens of the prompt included, where the layer hands
    them on), normalised to mean 0 and variance 1. A finished output is read at the schedule's lowest level, without noise.

    As a reward it is `{use: trained, run: ..., latents: true}`, of the latents themselves: in a run it decodes nothing, and ``nrg`` shows
    it the latents of each step with their level.

    Args:
        of: the policy of the pipeline, with what of its denoiser is trained (``lora``, or all of it). Its guidance is not used.
        layer: a module of the denoiser by name; by default ``mid_block``, where there is one, or else the last block.
        times: how places on the scheduler's training schedule are drawn, as in ``forward``.

    Paper: Liu et al. 2025, arXiv 2501.13918 (Flow-NRG's reward); Zhang et al. 2025, arXiv 2502.01051 (LRM: a denoiser as the backbone).

    Deviations: LRM reads several layers of a UNet and the prompt's pooled embedding; Flow-NRG's reward is a video model's first blocks.

    Errors: UserError for a pipeline with several denoisers, a scheduler whose training schedule is not known, and a layer without hidden
    states.
    """
    return NoisyLatentsReader(of, layer=layer, times=times)


class NoisyLatentsReader:
    """See ``noisy_latents``; a ``readers.Reader``. ``layer``: the name of the one whose states are read."""

    differentiable = True

    def __init__(self, of: DiffusersPolicy, *, layer: str | None, times: str):
        if len(of.denoisers) > 1:
            raise UserError(f"policy.of.of: {type(of.pipe).__name__} has {', '.join(of.denoisers)}; takes a pipeline with one denoiser")
        self.of, self.times, self.schedule = of, times, training_schedule(of.pipe.scheduler)
        self.model, self.sets, self.rows_at_once = of.denoiser, of.sets, of.rows_at_once
        self.layer = _usual(of.denoiser) if layer is None else layer
        if self.layer not in dict(of.denoiser.named_modules()):
            names = ", ".join(name for name, _ in of.denoiser.named_children())
            raise UserError(f"policy.of.layer: got {self.layer!r}, {type(of.denoiser).__name__} has {names}, and what is inside of them")
        first = of.first()
        self.shape = first.shape
        with torch.enable_grad():
            some = self.at([of.caller.example], torch.zeros((1, *first.shape), dtype=first.dtype, device=self.device), None)
            trained = self.sets.trained
            gradients = torch.autograd.grad(some.sum(), list(trained.values()), allow_unused=True)
        self.width = some.shape[1]
        self.sets.freeze([name for name, gradient in zip(trained, gradients, strict=True) if gradient is None])

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.model.parameters()).device

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the pipeline's call refuses."""
        return self.of.refusals(prompts)

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """Encoded outputs, the level of each group, and the noise of each row. Errors: UserError for no pictures."""
        rows = [outputs[row] for row in range(len(prompts))[part]]
        if odd := next((type(row).__name__ for row in rows if not isinstance(row, Tensor)), None):
            raise UserError(f"policy.of: noisy_latents reads images and videos, got {odd}; of words, takes transformers")
        own = torch.stack(rows)
        clean = latents(self.of, own)
        names, which = group.unique(return_inverse=True)
        count, shape = len(self.schedule.timesteps), (len(group), 1, *clean.shape[1:])
        if rng is None:
            places, noise = torch.full((len(names), 1), self._lowest), torch.zeros(shape)
        else:
            drawn = torch.rand((len(names), 1), generator=rng)
            if self.times == "logit_normal":
                drawn = torch.randn((len(names), 1), generator=rng).sigmoid()
            places, noise = (drawn * count).long().clamp(max=count - 1), torch.randn(shape, generator=rng)
        nothing = torch.full((len(rows), 1), torch.nan, dtype=torch.float64)
        held = Noised(clean, noise, places[which], torch.arange(len(group))[part], [None] * len(rows))
        return Rollout(list(prompts[part]), own, nothing, nothing.isnan(), group[part], held=held)

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, H]`` float32, differentiable with respect to the denoiser's parameters and the outputs."""
        noised: Noised = rollout.held
        which, clean = noised.which[rows], noised.clean[rows.to(noised.clean.device)]
        places = noised.places[which, 0]
        levels = Level(*(value[places].to(clean).view(-1, *(1,) * (clean.ndim - 1)) for value in self.schedule.levels))
        x = levels.signal * clean + levels.noise * noised.noise[which, 0].to(clean)
        return self._states([rollout.prompts[row] for row in rows.tolist()], x, places)

    def at(self, prompts: list[Any], x: Tensor, level: Level | None) -> Tensor:
        """``[B, H]`` float32 of latents ``[B, ...]`` as the denoiser sees them, differentiable in them.

        level: 0-d, or one for each row; the nearest one of the training schedule is meant, and latents are brought to its scale. None: the
        latents are clean. Errors: UserError for latents of another shape than the pipeline's.
        """
        if tuple(x.shape[1:]) != self.shape:
            got, takes = list(x.shape[1:]), list(self.shape)
            raise UserError(f"latents: got {got} of a row, the reward model reads {takes}; takes those of the pipeline and size it has")
        if level is None:
            places = torch.full((len(x),), self._lowest)
            scale = self.schedule.levels.signal[places].to(x)
        else:
            angle, size = (function(*(value.double().cpu() for value in level)) for function in (_angle, torch.hypot))
            own = _angle(*(value.double() for value in self.schedule.levels))
            places = (own - angle.reshape(-1, 1)).abs().argmin(1).expand(len(x))
            scale = (torch.hypot(*self.schedule.levels)[places] / size.expand(len(x))).to(x)
        return self._states(prompts, scale.view(-1, *(1,) * (x.ndim - 1)) * x, places)

    @property
    def _lowest(self) -> int:
        return int(self.schedule.levels.noise.argmin())

    def _states(self, prompts: list[Any], x: Tensor, places: Tensor) -> Tensor:
        """Pooled states behind the layer, ``[B, H]``; one call of the pipeline for all rows, where it takes a time for each."""
        levels = Level(*(value[places].to(x) for value in self.schedule.levels))
        with _watched(self.model.get_submodule(self.layer)) as states:
            self.of.errors.predicted(prompts, x, self.schedule.timesteps[places].to(x.device), levels)
        tried = len(states)  # a pipeline that wants one time for all rows is asked once in vain
        while sum(map(len, states[-tried:])) > len(x) and tried > 1:
            tried -= 1
        found = torch.cat(states[-tried:]) if states else x.new_zeros(0, 1)
        if len(found) != len(x):
            kind = type(self.model).__name__
            raise UserError(f"policy.of.layer: {self.layer} of {kind} has no hidden states of each row; takes a block of the denoiser")
        return functional.layer_norm(found.float(), found.shape[1:])


def _angle(signal: Tensor, noise: Tensor) -> Tensor:
    """0 where there is no noise, a right angle where there is nothing else."""
    return torch.atan2(noise, signal)


def _usual(denoiser: nn.Module) -> str:
    """The name of the layer that is read where the user names none. Errors: UserError for a denoiser without blocks."""
    children = dict(denoiser.named_children())
    if "mid_block" in children:
        return "mid_block"
    lists = [f"{name}.{len(child) - 1}" for name, child in children.items() if isinstance(child, nn.ModuleList) and len(child)]
    if not lists:
        raise UserError(
            f"policy.of.layer: {type(denoiser).__name__} has no list of blocks; takes the name of a layer: {', '.join(children)}"
        )
    return lists[-1]


@contextmanager
def _watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """While the block lasts, what a layer hands on, pooled: ``[B, H]`` of each of its calls."""
    states = list[Tensor]()

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        parts = [
            part for part in (output if isinstance(output, (tuple, list)) else (output,)) if isinstance(part, Tensor) and part.ndim > 2
        ]
        tokens = [part if part.ndim == 3 else part.flatten(2).transpose(1, 2) for part in parts]  # [B, N, H] of tokens, or channels first
        alike = [part for part in tokens if part.shape[-1] == tokens[-1].shape[-1]]
        states.extend([torch.cat(alike, 1).mean(1)] if alike else [])

    handle = layer.register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()
