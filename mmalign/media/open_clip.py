"""Models of the package open_clip, with their tokenizer and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.matching import message_of
from mmalign.media.preprocessing import CLIP_MEAN, CLIP_STD, fitted, standard
from mmalign.types import UserError

Edge = Literal["shortest", "longest", "both"]
EDGES: dict[str, Edge] = {"shortest": "shortest", "longest": "longest", "squash": "both"}  # in open_clip's words


class OpenClipNet(NamedTuple):
    """net: float32, on the CPU, in training mode or not as open_clip leaves it. size, edge, mean, std: of its own preprocessing."""

    net: Any
    tokenizer: Any
    size: int
    edge: Edge
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, images: Tensor) -> Tensor:
        """``[n, 3, H, W]`` in 0..1 as the model sees them, in float and clipped to 0..1 as 8-bit code does; differentiable."""
        return standard(fitted(images, self.size, edge=self.edge).clamp(0, 1), self.mean, self.std)


def load(name: str, architecture: str | Mapping[str, Any], weights: str | None, *, seed: int = 0, key: str = "model") -> OpenClipNet:
    """A model by open_clip's names.

    architecture: of ``open_clip.list_models()``, ``hf-hub:ID``, ``local-dir:FOLDER`` (these two have weights of their own), or a mapping
    of its words (``embed_dim``, ``vision_cfg``, ``text_cfg``). weights: a tag of it, or a file; None: random ones, drawn from ``seed``.
    name, key: what errors begin with.

    Errors: UserError where the package is missing or broken, or knows no such model or weights.
    """
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        why = f"needs the package open_clip, which cannot be imported ({message_of(error)})"
        raise UserError(f"{name}: {why}; pip install open_clip_torch timm, and a torchvision that fits this torch") from error
    own = isinstance(architecture, str) and architecture.startswith(("hf-hub:", "local-dir:"))
    if isinstance(architecture, str) and not own and architecture not in open_clip.list_models():
        takes = "takes a model of open_clip (open_clip.list_models()), hf-hub:ID or local-dir:FOLDER"
        raise UserError(f"{name}.{key}: got {architecture!r}, {takes}")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net, tokenizer = _made(open_clip, architecture, weights, own)
    except Exception as error:  # whatever open_clip raises for tags, files and folders that it does not know
        got = f"{key}: got {architecture}" if weights is None else f"weights: got {weights!r} for {architecture}"
        raise UserError(f"{name}.{got}, which open_clip cannot load: {message_of(error)}") from error
    facts = open_clip.get_model_preprocess_cfg(net)
    size = facts["size"] if isinstance(facts["size"], int) else facts["size"][0]
    mean, std = tuple(facts.get("mean") or CLIP_MEAN), tuple(facts.get("std") or CLIP_STD)
    return OpenClipNet(net, tokenizer, size, EDGES[facts.get("resize_mode") or "shortest"], mean, std)


def _made(open_clip: Any, architecture: str | Mapping[str, Any], weights: str | None, own: bool) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    if isinstance(architecture, str):
        known = {"pretrained": None if own else weights, "require_pretrained": own or weights is not None}
        return open_clip.create_model(architecture, **known), open_clip.get_tokenizer(architecture)
    net = open_clip.CLIP(**architecture)
    if weights is not None:
        open_clip.load_checkpoint(net, weights)
    return net, open_clip.SimpleTokenizer(context_length=net.context_length)
