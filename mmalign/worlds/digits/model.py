"""A small diffusion transformer for 8x8 digits and the table of prompt embeddings, as diffusers models.

``DigitsTransformer`` takes the arguments of diffusers' ``SD3Transformer2DModel``, so that either serves the same pipeline.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmalign.worlds.digits.data import NO_CLASS


def sinusoids(time: Tensor, width: int) -> Tensor:
    """Sinusoidal features ``[B, width]`` of times ``[B]``, frequencies 1 to 1/10000 (Vaswani et al. 2017, section 3.5)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Block(nn.Module):
    """Attention and a two-layer perceptron, both shifted, scaled and gated by the condition (DiT, Peebles & Xie 2023, adaLN-Zero)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        h = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.to_out(attended)
        return x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)


class DigitsTransformer(ModelMixin, ConfigMixin):
    """A diffusion transformer: images ``[B, 1, 8, 8]`` in 2x2 patches, a velocity of the same shape out.

    ``pooled_projections [B, text_width]`` conditions it; ``encoder_hidden_states`` is taken for the pipeline's sake and
    ignored; ``timestep [B]`` in 0..1000.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (read by diffusers)

    @register_to_config
    def __init__(
        self,
        sample_size: int = 8,
        in_channels: int = 1,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        text_width: int = 64,
    ):
        super().__init__()
        self.patch = patch_size
        self.gradient_checkpointing = False
        tokens, numbers = (sample_size // patch_size) ** 2, in_channels * patch_size**2
        self.patch_in = nn.Linear(numbers, width)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.text = nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, numbers)
        for layer in (self.modulation_out, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        pooled_projections: Tensor,
        timestep: Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The velocity ``[B, 1, 8, 8]`` at ``(hidden_states, timestep)``."""
        side = hidden_states.shape[-1] // self.patch
        x = functional.unfold(hidden_states, self.patch, stride=self.patch).transpose(1, 2)
        x = self.patch_in(x) + self.position
        time = sinusoids(timestep, x.shape[-1]).to(x.dtype)
        condition = functional.silu(self.time(time) + self.text(pooled_projections))
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, use_reentrant=False)
            else:
                x = block(x, condition)
        shift, scale = self.modulation_out(condition)[:, None].chunk(2, dim=-1)
        x = self.patch_out(self.norm_out(x) * (1 + scale) + shift)
        velocity = functional.fold(x.transpose(1, 2), (side * self.patch,) * 2, self.patch, stride=self.patch)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)


class DigitsTextEncoder(ModelMixin, ConfigMixin):
    """One embedding for each digit and one for the empty prompt: digits ``[B]`` -> ``[B, text_width]``."""

    @register_to_config
    def __init__(self, text_width: int = 64):
        super().__init__()
        self.embedding = nn.Embedding(NO_CLASS + 1, text_width)

    def forward(self, digits: Tensor) -> Tensor:
        return self.embedding(digits)
