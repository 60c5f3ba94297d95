"""The path that each scheduler class of diffusers takes from noise to data, and what a model under it predicts, in mmalign's own terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.samplers.kernels import predict
from mmalign.types import Level, Prediction, UserError

# How each scheduler's latents relate to data and noise. One whose own timesteps are no plain grid is replaced by the first-order one.
FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMapEulerDiscreteScheduler"}
PRESERVING = {
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler",
    "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "UnCLIPScheduler",
}  # fmt: skip
FROM_SIGMAS = {
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
}
EXPLODING = {
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
}  # fmt: skip
PRECONDITIONED = {
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "CosineDPMSolverMultistepScheduler",
}  # they know how to read their model
TRIGONOMETRIC = {"SCMScheduler"}  # x = cos(t) * x_0 + sin(t) * sigma_data * eps (TrigFlow)
RATIOS = {"DDPMWuerstchenScheduler"}  # variance preserving, its timesteps are ratios from 1 to 0
KNOWN = FLOW | PRESERVING | FROM_SIGMAS | EXPLODING | PRECONDITIONED | TRIGONOMETRIC | RATIOS
FIRST_ORDER = {
    "PNDMScheduler": "DDIMScheduler",
    "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
    "DPMSolverSinglestepScheduler": "DPMSolverMultistepScheduler",
} | dict.fromkeys(EXPLODING - {"EulerDiscreteScheduler"}, "EulerDiscreteScheduler")
PLAYED = "Played"
"""Begins the name of the class that ``scheduler.seat`` makes of a scheduler's own."""


def own_name(scheduler: Any) -> str:
    """The name of its class in diffusers, also while a player answers for it."""
    return type(scheduler).__name__.removeprefix(PLAYED)


def grid(scheduler: Any) -> Level:
    """Levels ``[T + 1]`` of a scheduler after ``set_timesteps``, from its first timestep to clean data, float32 on the CPU.

    Errors: UserError for a scheduler whose path is not known here.
    """
    name = own_name(scheduler)
    if name in FLOW or (name in FROM_SIGMAS and scheduler.config.get("use_flow_sigmas", False)):
        sigmas = scheduler.sigmas.cpu().float()
        if inverted(scheduler):
            return Level(sigmas, 1 - sigmas)
        return _exploding(sigmas) if above_one(scheduler) else Level(1 - sigmas, sigmas)
    if name in PRESERVING:
        abar = scheduler.alphas_cumprod.cpu()[scheduler.timesteps.cpu().long()].float()
        last = torch.ones(()) if scheduler.config.get("set_alpha_to_one", True) else scheduler.alphas_cumprod[0].cpu().float()
        abar = torch.cat([abar, last[None]])
        return Level(abar.sqrt(), (1 - abar).sqrt())
    if name in FROM_SIGMAS:
        sigmas = scheduler.sigmas.cpu().float()
        signal = 1 / (1 + sigmas**2).sqrt()
        return Level(signal, sigmas * signal)
    if name in EXPLODING | PRECONDITIONED:
        return _exploding(scheduler.sigmas.cpu().float())
    if name in TRIGONOMETRIC:
        angle = scheduler.timesteps.cpu().float()
        return Level(angle.cos(), scheduler.config.sigma_data * angle.sin())
    if name in RATIOS:
        abar = scheduler._alpha_cumprod(scheduler.timesteps.cpu().float(), torch.device("cpu"))
        return Level(abar.sqrt(), (1 - abar).sqrt())
    raise UserError(f"scheduler: got {name}, takes one of {', '.join(sorted(KNOWN))}")


def inverted(scheduler: Any) -> bool:
    """A flow whose sigmas are the part of data, and rise; its model says ``x_0 - eps`` (Mochi, LongCat's audio)."""
    return bool(scheduler.config.get("invert_sigmas", False))


def _exploding(sigmas: Tensor) -> Level:
    return Level(torch.ones_like(sigmas), sigmas)


def above_one(scheduler: Any) -> bool:
    """A flow scheduler with EDM sigmas (Cosmos 2): ``x = x_0 + sigma * eps``, and the pipeline hands over ``eps`` as the velocity."""
    above = scheduler.__dict__.get("above_one")  # a probe puts its own sigmas there
    return (own_name(scheduler) in FLOW and float(scheduler.sigmas.max()) > 1.001) if above is None else above


def parametrisation(scheduler: Any) -> str:
    """What the model predicts, in ``samplers.kernels.predict``'s words. Errors: UserError for one not known here."""
    if own_name(scheduler) in FLOW:
        return "epsilon" if above_one(scheduler) else "flow"
    if own_name(scheduler) in TRIGONOMETRIC:
        return "v_prediction"
    kind = scheduler.config.get("prediction_type", "epsilon")
    names = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample", "flow_prediction": "flow"}
    if kind not in names:
        raise UserError(f"scheduler.prediction_type: got {kind!r}, takes {', '.join(names)}")
    return names[kind]


def clean_and_noise(scheduler: Any, output: Tensor, x: Tensor, t: Level) -> Prediction:
    """The model's output as a Prediction.

    On a variance-exploding path the network saw ``x / sqrt(1 + sigma^2)`` and speaks about that variance-preserving latent;
    what is clean and what is noise is the same there. A model that predicts its variance too (twice the channels) keeps
    the first half, as diffusers' DDPM and DDIM do.
    """
    if output.shape != x.shape and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    output = -output if inverted(scheduler) else output
    if own_name(scheduler) in PRECONDITIONED:
        clean = scheduler.precondition_outputs(x.float(), output.float(), t.noise.to(x.device))
        return Prediction(clean=clean, noise=(x.float() - clean) / t.noise.clamp(min=1e-12))
    if own_name(scheduler) in EXPLODING:
        size = (t.signal**2 + t.noise**2).sqrt()
        x, t = x.float() / size, Level(t.signal / size, t.noise / size)
    if own_name(scheduler) in TRIGONOMETRIC:  # v in units of the data: noise is sigma_data * eps
        size = scheduler.config.sigma_data
        prediction = predict(output, x, Level(t.signal, t.noise / size), parametrisation="v_prediction")
        return Prediction(clean=prediction.clean, noise=prediction.noise / size)
    return predict(output, x, t, parametrisation=parametrisation(scheduler))  # type: ignore[arg-type]


def first_order(scheduler: Any) -> Any:
    """The same path with a plain grid of timesteps: the scheduler itself, or its first-order sibling from the same config."""
    import diffusers

    sibling = FIRST_ORDER.get(type(scheduler).__name__)
    return getattr(diffusers, sibling).from_config(scheduler.config) if sibling else scheduler
