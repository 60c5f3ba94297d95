"""LoRA by the names that ComfyUI and kohya's scripts read: ``KEY.lora_down.weight``, ``KEY.lora_up.weight``, and ``KEY.alpha``, a tensor.

A key is a layer's name in the model's first repository, which for some models is not diffusers'. Where that repository has one layer for
several of diffusers', q, k and v in one matrix, their LoRAs are one of the sum of their ranks::

    [B_q A_q; B_k A_k; B_v A_v] = diag(B_q, B_k, B_v) [A_q; A_k; A_v]

Names are those that diffusers' own readers of such files take (``loaders/lora_conversion_utils.py``), which are asked at every export.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmalign.policies.adapters import adapter, linear_layers
from mmalign.types import UserError


class Family(NamedTuple):
    """How the layers of a model are named there.

    prefix: before a key; after ``lora_unet_`` dots are underscores. renamed: name there -> names in diffusers, several where they are one
    there, ``{}`` being a block's number. same: of the names that are the same. width: of all blocks, where readers know no other.
    """

    prefix: str
    renamed: Mapping[str, tuple[str, ...]] = {}
    same: str = r"(?!)"
    width: int | None = None


def _streams(first: str, second: str) -> dict[str, tuple[str, ...]]:
    """Double blocks of Flux. first, second: names of a block's two linear layers after attention."""
    block = "transformer_blocks.{}"
    return {
        "double_blocks.{}.img_attn.qkv": tuple(f"{block}.attn.to_{part}" for part in "qkv"),
        "double_blocks.{}.img_attn.proj": (f"{block}.attn.to_out.0",),
        "double_blocks.{}.img_mlp.0": (f"{block}.ff.{first}",),
        "double_blocks.{}.img_mlp.2": (f"{block}.ff.{second}",),
        "double_blocks.{}.txt_attn.qkv": tuple(f"{block}.attn.add_{part}_proj" for part in "qkv"),
        "double_blocks.{}.txt_attn.proj": (f"{block}.attn.to_add_out",),
        "double_blocks.{}.txt_mlp.0": (f"{block}.ff_context.{first}",),
        "double_blocks.{}.txt_mlp.2": (f"{block}.ff_context.{second}",),
    }


FLUX = {
    **_streams("net.0.proj", "net.2"),
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "single_blocks.{}.linear1": tuple(f"single_transformer_blocks.{{}}.{part}" for part in (*(f"attn.to_{p}" for p in "qkv"), "proj_mlp")),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
}
FLUX2 = {
    **_streams("linear_in", "linear_out"),
    "single_blocks.{}.linear1": ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj",),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.attn.to_out",),
}
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
WAN = {
    **{f"blocks.{{}}.self_attn.{there}": (f"blocks.{{}}.attn1.{here}",) for there, here in ATTENTION.items()},
    **{f"blocks.{{}}.cross_attn.{there}": (f"blocks.{{}}.attn2.{here}",) for there, here in ATTENTION.items()},
    **{f"blocks.{{}}.cross_attn.{part}_img": (f"blocks.{{}}.attn2.add_{part}_proj",) for part in "kv"},
    "blocks.{}.ffn.0": ("blocks.{}.ffn.net.0.proj",),
    "blocks.{}.ffn.2": ("blocks.{}.ffn.net.2",),
}
FAMILIES = {
    "UNet2DConditionModel": Family("lora_unet_", same=r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(attentions|resnets)\..+"),
    "FluxTransformer2DModel": Family("lora_unet_", FLUX, width=3072),
    "Flux2Transformer2DModel": Family("lora_unet_", FLUX2),
    "QwenImageTransformer2DModel": Family("lora_unet_", same=r"transformer_blocks\..+"),
    "WanTransformer3DModel": Family("diffusion_model.", WAN),
}
"""By the class of the denoiser: Stable Diffusion 1, 2 and XL; Flux.1; Flux.2; Qwen-Image; Wan 2.1 and 2.2."""


def family_of(module: nn.Module, what: str) -> Family:
    """Of a denoiser. Errors: UserError for one that has none."""
    found = next((FAMILIES[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in FAMILIES), None)
    if found is None:
        raise UserError(f"export --comfyui: got {type(module).__name__} ({what}), takes {', '.join(FAMILIES)}")
    return found


def keyed(module: nn.Module, what: str) -> dict[str, Tensor]:
    """What a file of a denoiser's LoRA holds; alpha is the rank everywhere, and alpha / rank is in ``lora_up``.

    what: the denoiser's name, for errors. Errors: UserError for a denoiser without a family, and for LoRA in a layer without a name there.
    """
    family, weights = family_of(module, what), adapter(module, folded=True)[0]
    widths = {name.removesuffix(".base_layer"): sizes for name, sizes in linear_layers(module).items()}
    layers = {key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")}
    stored, left = dict[str, Tensor](), set(layers)
    for there, parts in _groups(family, sorted(layers)):
        left -= set(parts)
        if len(parts) > 3 and family.width not in (None, widths[parts[0]][0]):
            raise UserError(f"export --comfyui: {what} is {widths[parts[0]][0]} wide, and readers of its keys know {family.width} alone")
        held = [part for part in parts if part in layers]
        up = torch.block_diag(*(weights[f"{part}.lora_B.weight"] for part in held))
        rows = dict(zip(held, up.split([widths[part][1] for part in held]), strict=True))
        up = torch.cat([rows[part] if part in rows else up.new_zeros(widths[part][1], up.shape[1]) for part in parts])
        key = family.prefix + (there.replace(".", "_") if family.prefix.endswith("_") else there)
        stored[f"{key}.lora_down.weight"] = torch.cat([weights[f"{part}.lora_A.weight"] for part in held]).cpu().contiguous()
        stored[f"{key}.lora_up.weight"] = up.cpu().contiguous()
        stored[f"{key}.alpha"] = torch.tensor(float(up.shape[1]))
    if left:
        raise UserError(f"export --comfyui: {len(left)} layers of {what} have no key there, such as {min(left)}; takes other lora.targets")
    return stored


def _groups(family: Family, layers: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(name there, all layers in diffusers that it stands for) of each with a LoRA in one of them."""
    found = dict[str, tuple[str, ...]]()
    for layer in layers:
        if re.fullmatch(family.same, layer):
            found[layer] = (layer,)
        for there, parts in family.renamed.items():
            for part in parts:
                if match := re.fullmatch(re.escape(part).replace(r"\{\}", r"(\d+)"), layer):
                    found[there.format(match[1])] = tuple(name.format(match[1]) for name in parts)
    return list(found.items())
