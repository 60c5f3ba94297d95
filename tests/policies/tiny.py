"""Tiny pipelines of the classes people use, with random weights built from config classes: nothing is downloaded."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch


def tokenizer(length: int = 16) -> Any:
    """A character tokenizer that any pipeline takes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *string.printable])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", model_max_length=length
    )


def clip(width: int = 32, projection: int = 32, with_projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        vocab_size=200, projection_dim=projection, max_position_embeddings=16,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if with_projection else CLIPTextModel(config)


def t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=200, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4)).eval()


def vae(channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    )  # fmt: skip


def stable_diffusion(scheduler: str = "DDIMScheduler") -> Any:
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4, cross_attention_dim=32, attention_head_dim=2,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    plan = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return diffusers.StableDiffusionPipeline(
        unet=unet, vae=vae(), text_encoder=clip(), tokenizer=tokenizer(), scheduler=getattr(diffusers, scheduler)(**plan), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4, cross_attention_dim=64, attention_head_dim=(2, 4),
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")
    return diffusers.StableDiffusionXLPipeline(
        unet=unet, vae=vae(), text_encoder=clip(), text_encoder_2=clip(with_projection=True), tokenizer=tokenizer(), tokenizer_2=tokenizer(), scheduler=scheduler
    )


def sd3() -> Any:
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=64, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(with_projection=True), text_encoder_2=clip(with_projection=True), text_encoder_3=t5(), tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), tokenizer_3=tokenizer(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux() -> Any:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, vae=vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(), text_encoder_2=t5(), tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )  # fmt: skip


def digits_dit() -> Any:
    from mmalign.worlds.digits.base import untrained

    return shaken(untrained("dit"))


def digits_sd3() -> Any:
    from mmalign.worlds.digits.base import untrained

    return shaken(untrained("sd3"))


def shaken(pipe: Any) -> Any:
    """Small noise on every parameter: layers that start at zero would hide what does not reach the output."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in (pipe.components[name] for name in ("transformer", "unet") if pipe.components.get(name) is not None):
            for p in module.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=rng))
    return pipe


# name -> (how it is made, further arguments of the policy)
PIPELINES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "digits": (digits_dit, {"guidance_scale": 2.0}),
    "digits_sd3": (digits_sd3, {}),
    "stable_diffusion": (stable_diffusion, {"guidance_scale": 5.0, "call": {"height": 32, "width": 32}}),
    "stable_diffusion_pndm": (lambda: stable_diffusion("PNDMScheduler"), {"guidance_scale": 5.0, "call": {"height": 32, "width": 32}}),
    "stable_diffusion_dpm": (lambda: stable_diffusion("DPMSolverMultistepScheduler"), {"guidance_scale": 1.0, "call": {"height": 32, "width": 32}}),
    "stable_diffusion_euler": (lambda: stable_diffusion("EulerAncestralDiscreteScheduler"), {"guidance_scale": 5.0, "call": {"height": 32, "width": 32}}),
    "sdxl": (sdxl, {"guidance_scale": 5.0, "call": {"height": 32, "width": 32}}),
    "sd3": (sd3, {"guidance_scale": 4.5, "call": {"height": 32, "width": 32, "max_sequence_length": 16}}),
    "flux": (flux, {"guidance_scale": 3.5, "call": {"height": 16, "width": 16, "max_sequence_length": 16}}),
}


def make(name: str, **more: Any) -> Any:
    """A policy around a tiny pipeline: always the same weights."""
    from mmalign.policies.diffusers import diffusers

    factory, arguments = PIPELINES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = factory()
    return diffusers(pipe, **{"num_inference_steps": 4, **arguments, **more})
