"""Base generators with headroom: flow matching on half A with half of the labels replaced at random.

A person asks such a model for a seven and gets one about half of the time, as people do of the models they align.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from mmalign.arguments.ranges import Count, Positive, Proportion, Seed, Share
from mmalign.types import UserError
from mmalign.worlds._fitting import fit
from mmalign.worlds._loading import quietly
from mmalign.worlds.digits.data import NO_CLASS, real

__all__ = ["digits", "train_base", "untrained"]

Denoiser = Literal["dit", "sd3"]


def digits(*, denoiser: Denoiser = "dit", path: str | None = None) -> Any:
    """The base pipeline that comes with mmalign, which draws the digit that it is asked for about half of the time.

    denoiser: ``dit``, our own transformer, or ``sd3``, diffusers' SD3Transformer2DModel. path: the folder of another digits pipeline
    (``save_pretrained``).

    Errors: UserError where there is none.
    """
    from mmalign.rooms import resource
    from mmalign.worlds.digits.pipeline import DigitsPipeline

    folder = resource(f"assets/digits/{denoiser}") if path is None else Path(path)
    if not (folder / "model_index.json").is_file():
        raise UserError(f"pipeline: no digits pipeline in {folder}; scripts/make_assets.py makes the ones that come with mmalign")
    pipe = quietly(lambda: DigitsPipeline.from_pretrained(folder, dtype=torch.float32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def untrained(denoiser: Denoiser = "dit", *, seed: Seed = 0) -> Any:
    """A digits pipeline with random weights.

    denoiser: as in ``digits``. seed: of the weights.

    Errors: UserError for another denoiser.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    from mmalign.worlds.digits.model import DigitsTextEncoder, DigitsTransformer
    from mmalign.worlds.digits.pipeline import DigitsPipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if denoiser == "dit":
            transformer: torch.nn.Module = DigitsTransformer()
        elif denoiser == "sd3":
            transformer = SD3Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=1, out_channels=1, num_layers=3, attention_head_dim=16, num_attention_heads=4,
                joint_attention_dim=64, caption_projection_dim=64, pooled_projection_dim=64, pos_embed_max_size=8,
            )  # fmt: skip
        else:
            raise UserError(f"denoiser: got {denoiser!r}, takes 'dit' or 'sd3'")
        text_encoder = DigitsTextEncoder()
    return DigitsPipeline(transformer=transformer, text_encoder=text_encoder, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))


def train_base(
    denoiser: Denoiser = "dit",
    *,
    label_noise: Proportion = 0.5,
    iterations: Count = 4000,
    batch_size: Count = 128,
    learning_rate: Positive = 2e-3,
    ema_decay: Share = 0.995,
    seed: Seed = 0,
    progress: bool = False,
) -> Any:
    """Trains a base pipeline from scratch on half A (some minutes on two cores); returns it in evaluation mode.

    Rectified-flow matching with logit-normal times (Esser et al. 2024, section 3.1), 10 % of prompts dropped for guidance,
    images shifted by nothing and flipped by nothing.

    Args:
        denoiser: as in ``digits``.
        label_noise: fraction of the labels that is redrawn once, uniformly over all ten digits.
        iterations: updates. batch_size: images of each. learning_rate: the highest of a one-cycle schedule.
        ema_decay: of the average of the parameters that is kept. progress: whether a bar is shown.
        seed: of weights, labels and batches.

    Errors: UserError for another denoiser.
    """
    pipe = untrained(denoiser, seed=seed)
    images, labels = real("A")
    rng = torch.Generator().manual_seed(seed)
    noisy = torch.rand(len(labels), generator=rng) < label_noise
    labels = torch.where(noisy, torch.randint(0, 10, labels.shape, generator=rng), labels)
    live = torch.nn.ModuleList([pipe.transformer, pipe.text_encoder])

    def loss() -> torch.Tensor:
        rows = torch.randint(0, len(labels), (batch_size,), generator=rng)
        clean, digits = images[rows] * 2 - 1, labels[rows]
        digits = torch.where(torch.rand(batch_size, generator=rng) < 0.1, NO_CLASS, digits)
        sigma = torch.sigmoid(torch.randn(batch_size, generator=rng))
        noise = torch.randn(clean.shape, generator=rng)
        noised = (1 - sigma)[:, None, None, None] * clean + sigma[:, None, None, None] * noise
        condition = pipe.text_encoder(digits)
        velocity = pipe.transformer(
            hidden_states=noised,
            timestep=sigma * 1000,
            encoder_hidden_states=condition[:, None],
            pooled_projections=condition,
            return_dict=False,
        )[0]
        return functional.mse_loss(velocity, noise - clean)

    fit(live, loss, name=f"base {denoiser}", iterations=iterations, learning_rate=learning_rate, ema_decay=ema_decay, progress=progress)
    live.requires_grad_(False)
    return pipe
