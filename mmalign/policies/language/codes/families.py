"""The classes of transformers that write images as codes and can decode them. Others see images as codes, and could not show what they
would write."""

from __future__ import annotations

from typing import Any

from mmalign.policies.language.codes.emu3 import Emu3
from mmalign.policies.language.codes.janus import Janus
from mmalign.policies.language.codes.layouts import Layout
from mmalign.policies.language.prompts.chat import Chat
from mmalign.types import UserError

CANNOT = {
    "chameleon": "transformers has no decoder of its codes, and its forward bans them",
    "glm_image": "its codes are decoded by a pipeline of diffusers, which the policy diffusers takes",
}
"""Model type -> why it makes no images."""
FAMILIES: dict[str, Any] = {"JanusForConditionalGeneration": Janus, "Emu3ForConditionalGeneration": Emu3}


def layout_of(model: Any, chat: Chat, size: tuple[int, int] | None) -> Layout:
    """How a model writes images. size: height and width, of a model that writes several.

    Errors: UserError for a model that makes no images, and for a size that it does not make.
    """
    name, why = type(model).__name__, CANNOT.get(str(model.config.model_type))
    if why is not None:
        raise UserError(f"policy.of.model: {name} makes no images: {why}; takes Janus or Emu3")
    if name not in FAMILIES:
        raise UserError(f"policy.of.model: {name} makes no images; takes a model that writes them as codes: Janus or Emu3")
    layout: Layout = FAMILIES[name](model, chat, size)
    return layout
