"""The models of the scripts beside this one: shapes that are published or said, weights that are random."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Size(NamedTuple):
    """Of an SD3 transformer: layers, heads of 64, and the side of its latents."""

    layers: int
    heads: int
    side: int = 16


SIZES = {"tiny": Size(2, 2, 8), "3M": Size(2, 4), "40M": Size(8, 6), "300M": Size(16, 12)}


def sd3(size: Size, *, seed: int = 0) -> Any:
    """A StableDiffusion3Pipeline around a transformer of some size; encoders, and the decoder, are a tiny twin's."""
    from diffusers import SD3Transformer2DModel

    from mmalign.policies.twins.pipelines import twin

    pipe = twin("StableDiffusion3Pipeline", seed=seed)
    old = pipe.transformer.config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=size.side, patch_size=2, in_channels=old.in_channels, out_channels=old.in_channels, num_layers=size.layers,
            attention_head_dim=64, num_attention_heads=size.heads, joint_attention_dim=old.joint_attention_dim,
            caption_projection_dim=64 * size.heads, pooled_projection_dim=old.pooled_projection_dim, pos_embed_max_size=64,
        )  # fmt: skip
        shaken(transformer)
    pipe.register_modules(transformer=transformer)
    return pipe


def unet(widths: tuple[int, ...] = (64, 128, 256), *, seed: int = 0) -> Any:
    """A StableDiffusionPipeline around a U-Net of some widths; what stands around it is a tiny twin's."""
    from diffusers import UNet2DConditionModel

    from mmalign.policies.twins.pipelines import twin

    pipe = twin("StableDiffusionPipeline", seed=seed)
    old = pipe.unet.config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UNet2DConditionModel(
            sample_size=16, in_channels=old.in_channels, out_channels=old.out_channels, block_out_channels=widths, layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(widths) - 1),
            cross_attention_dim=old.cross_attention_dim, attention_head_dim=8, norm_num_groups=32,
        )  # fmt: skip
    pipe.register_modules(unet=net)
    return pipe


@torch.no_grad()
def shaken(module: torch.nn.Module, by: float = 0.02) -> None:
    """Noise on every parameter: what starts as zero would hide what does not reach the output."""
    for parameter in module.parameters():
        parameter.add_(by * torch.randn_like(parameter))


def parameters(module: torch.nn.Module) -> int:
    """How many numbers a module holds."""
    return sum(parameter.numel() for parameter in module.parameters())
