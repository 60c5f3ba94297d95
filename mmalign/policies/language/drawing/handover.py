"""What a server of rollouts is handed: whole weights in the folder that it serves, and conversations with their pictures and videos.

Media are decoded here, by what the policy itself reads them with, and sent as PNG: the server's processor gets the very pixels that the
policy's gets, upright, of the same frames, and without loss. A video is one ``data:video/jpeg`` address with its frames behind each other
by commas, which vLLM opens picture by picture, whatever their format.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmalign.conversations import Turn, media_of
from mmalign.distributed.meshes import whole
from mmalign.files import usual_modes
from mmalign.media import Medium, footage
from mmalign.policies.adapters import lora_layers
from mmalign.policies.language.prompts.vision import Vision

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def merged(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a model by their own names, LoRA in its members added in."""
    weights = {name.replace(".base_layer.", "."): whole(value) for name, value in model.state_dict().items() if "lora_" not in name}
    for name, layer in lora_layers(model).items():
        delta: Tensor = layer.get_delta_weight("default")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + whole(delta).to(weights[f"{name}.weight"])
    return weights


def write_weights(model: Any, folder: Path) -> None:
    """Puts a model's weights in place of those in a folder, file by file as a whole; its config and tokenizer stay."""
    place = folder / ".mmalign"
    shutil.rmtree(place, ignore_errors=True)
    model.save_pretrained(str(place), state_dict=merged(model))
    usual_modes(place)
    new = {file.name for pattern in WEIGHTS for file in place.glob(pattern)}
    for name in sorted(new):
        os.replace(place / name, folder / name)
    for stale in (file for pattern in WEIGHTS for file in folder.glob(pattern) if file.name not in new):
        stale.unlink()
    shutil.rmtree(place)


def messages(turns: Sequence[Turn], vision: Vision) -> list[dict[str, Any]]:
    """A conversation as OpenAI's chat completions take it, with its media in it."""
    media, sent = iter(media_of(turns)), list[dict[str, Any]]()
    for turn in turns:
        content = turn.get("content")
        if not isinstance(content, str) and content is not None:
            content = [part if part.get("type") == "text" else _address(next(media), vision) for part in content]
        sent.append({**turn, "content": content})
    return sent


def media_options(media: Sequence[Medium], vision: Vision) -> dict[str, Any]:
    """Further fields of a request: that no frame is left out, and where the frames of a single video stood in it."""
    clips = [medium for medium in media if medium.kind == "video"]
    if not clips:
        return {}
    options: dict[str, Any] = {"num_frames": -1}
    if len(clips) == 1 and (clip := footage(clips[0].source, vision.limits)).rate is not None:
        options |= {"fps": clip.rate, "frames_indices": clip.places, "total_num_frames": clip.length}
    return {"media_io_kwargs": {"video": options}}


def _address(medium: Medium, vision: Vision) -> Mapping[str, Any]:
    if medium.kind == "image":
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(vision.picture(medium))}"}}
    from PIL import Image

    frames = footage(medium.source, vision.limits).frames.permute(0, 2, 3, 1).contiguous().numpy()
    return {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(_png(Image.fromarray(f)) for f in frames)}}


def _png(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
