"""The digits world as a diffusers pipeline."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mmalign.types import UserError
from mmalign.worlds.digits import model as _model  # noqa: F401 (from_pretrained only takes classes from modules that are imported)
from mmalign.worlds.digits.data import classes

__all__ = ["DigitsPipeline"]


class DigitsPipeline(DiffusionPipeline):
    """Text to 8x8 grey digits by rectified flow in pixel space (-1..1); no VAE.

    ``transformer`` is a ``DigitsTransformer`` or diffusers' ``SD3Transformer2DModel``. Prompts name a digit; the empty
    prompt is the unconditional branch of classifier-free guidance.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 (read by diffusers)

    def __init__(self, transformer: torch.nn.Module, text_encoder: torch.nn.Module, scheduler: FlowMatchEulerDiscreteScheduler):
        super().__init__()
        self.register_modules(transformer=transformer, text_encoder=text_encoder, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    def encode_prompt(self, prompt: list[str], device: torch.device) -> Tensor:
        """Embeddings ``[B, text_width]`` of prompts."""
        return self.text_encoder(classes(prompt).to(device))

    @torch.no_grad()
    def __call__(  # the call of a diffusers pipeline
        self,
        prompt: str | list[str] | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' own signature)
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images of prompts, as every diffusers pipeline makes them.

        ``latents [B, 1, 8, 8]`` replace the initial noise; ``prompt_embeds [B, text_width]`` replace ``prompt``.
        ``guidance_scale`` above 1 doubles the batch.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise UserError("prompt: takes either prompt or prompt_embeds, got both or neither")
        device = self._execution_device
        if prompt_embeds is None:
            prompt_embeds = self.encode_prompt([prompt] if isinstance(prompt, str) else list(prompt), device)  # type: ignore[arg-type]
        prompt_embeds = prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
        batch, dtype = prompt_embeds.shape[0], self.transformer.dtype
        guided = guidance_scale > 1
        condition = prompt_embeds.to(dtype)
        if guided:
            condition = torch.cat([self.encode_prompt([""] * batch, device).to(dtype), condition])
        if latents is None:
            side = self.transformer.config.sample_size
            latents = randn_tensor((batch, 1, side, side), generator=generator, device=device, dtype=dtype)
        latents = latents.to(device, dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                model_input = torch.cat([latents] * 2) if guided else latents
                velocity = self.transformer(
                    hidden_states=model_input,
                    timestep=t.expand(model_input.shape[0]),
                    encoder_hidden_states=condition[:, None],
                    pooled_projections=condition,
                    return_dict=False,
                )[0]
                if guided:
                    free, conditional = velocity.chunk(2)
                    velocity = free + guidance_scale * (conditional - free)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, i, t, {"latents": latents}).pop("latents", latents)
                bar.update()
        images = latents if output_type == "latent" else self.image_processor.postprocess(latents, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
