"""What is known of a pipeline without its weights: its class, the parts it goes without, its scheduler's config."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.types import UserError

SECONDS = 3.0  # to wait for the hub

# Hub ids of the configs that come with mmalign -> pipeline class, and what the class knows and this model goes without.
# For when the hub is out of reach: written from the model cards, and not checked against the hub here.
KNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("StableDiffusionPipeline", ()),
    "stabilityai/stable-diffusion-xl-base-1.0": ("StableDiffusionXLPipeline", ()),
    "stabilityai/stable-diffusion-3.5-medium": ("StableDiffusion3Pipeline", ()),
    "stabilityai/stable-diffusion-3.5-large": ("StableDiffusion3Pipeline", ()),
    "black-forest-labs/FLUX.1-dev": ("FluxPipeline", ()),
    "black-forest-labs/FLUX.1-Kontext-dev": ("FluxKontextPipeline", ()),
    "Qwen/Qwen-Image": ("QwenImagePipeline", ()),
    "Qwen/Qwen-Image-Edit": ("QwenImageEditPipeline", ()),
    "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers": ("SanaPipeline", ()),
    "Tongyi-MAI/Z-Image": ("ZImagePipeline", ()),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("WanPipeline", ("transformer_2", "boundary_ratio")),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": ("WanPipeline", ("transformer_2", "boundary_ratio")),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ("WanPipeline", ()),
    "Lightricks/LTX-Video": ("LTXPipeline", ()),
    "THUDM/CogVideoX-2b": ("CogVideoXPipeline", ()),
    "hunyuanvideo-community/HunyuanVideo": ("HunyuanVideoPipeline", ()),
}


class Index(NamedTuple):
    """A pipeline's class by name, parts that it goes without, the scheduler's class and config (None: the class's usual one).

    source: where this is from, in words.
    """

    kind: str
    without: tuple[str, ...]
    scheduler: dict[str, Any] | None
    source: str


def read_index(model: str, *, kind: str | None = None) -> Index:
    """What is known of a hub id or folder: from the folder, the hub's cache, the hub, ``kind``, or the table above, first found.

    kind: a pipeline class, for a model that nothing else is known of. ``HF_HUB_OFFLINE=1`` leaves the hub alone; otherwise it has
    three seconds. Errors: UserError for a model of which no class is known, or for a folder without ``model_index.json``.
    """
    text, source = text_of(model, "model_index.json")
    if text is None and Path(model).is_dir():
        raise UserError(f"{model}: no model_index.json there; takes the folder of a diffusers pipeline, or a hub id")
    if text is not None:
        index = json.loads(text)
        name = index.get("_class_name")
        if kind is not None and kind != name:
            raise UserError(f"--class: got {kind}, but {model} is a {name} ({source})")
        absent = tuple(key for key, value in index.items() if value == [None, None] or (value is None and not key.startswith("_")))
        scheduler_text, _ = text_of(model, "scheduler/scheduler_config.json")
        return Index(str(name), absent, None if scheduler_text is None else json.loads(scheduler_text), source)
    if kind is not None:
        return Index(kind, (), None, "--class")
    if model in KNOWN:
        return Index(*KNOWN[model], None, "mmalign's table, as the hub cannot be reached")
    raise UserError(
        f"{model}: no such folder, the hub cannot be reached or has no model_index.json there, and mmalign's table does not have it; "
        "say its pipeline class: --class StableDiffusion3Pipeline"
    )


def text_of(model: str, name: str) -> tuple[str | None, str]:
    """A small text file of a model, and where it was found."""
    if Path(model).is_dir():
        file = Path(model) / name
        return (file.read_text(encoding="utf-8"), "its folder") if file.is_file() else (None, "")
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(model, name) if model.count("/") == 1 else None
    if isinstance(cached, str):
        return Path(cached).read_text(encoding="utf-8"), "the hub's cache"
    if model.count("/") != 1 or constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE"):
        return None, ""
    import urllib.request

    try:  # not through the hub's own client, which tries for half a minute
        with urllib.request.urlopen(hf_hub_url(model, name), timeout=SECONDS) as answer:
            return answer.read().decode("utf-8"), "the hub"
    except (OSError, ValueError):  # out of reach, or not for everybody
        return None, ""
