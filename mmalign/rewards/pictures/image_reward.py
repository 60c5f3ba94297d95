"""ImageReward: what experts preferred, by a BLIP that reads the prompt beside the image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmalign.arguments.ranges import Count
from mmalign.matching import reading, refuse_length
from mmalign.media.preprocessing import fitted, standard
from mmalign.rewards._models.clip import warn_of_long
from mmalign.rewards._models.weights import device_of, filled, tensors, weight_file
from mmalign.rewards._shared.scorer import Scorer, on_images
from mmalign.rewards.pictures.aesthetic import linear_head
from mmalign.types import UserError

MEAN, STD, TOKENS = 0.16717362830052426, 1.0333394966054072, 35
HEAD = 64  # numbers in an attention head of every BLIP
VISION = (
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"), ("blocks.", "encoder.layers."), (".attn.qkv", ".self_attn.qkv"),
    (".attn.proj", ".self_attn.projection"), (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."),
)  # fmt: skip


def image_reward(
    *,
    weights: str = "THUDM/ImageReward/ImageReward.pt",
    tokenizer: str = "google-bert/bert-base-uncased",
    sha256: str | None = None,
    device: str | None = None,
    rows_at_once: Count = 32,
) -> Scorer:
    """Reward of about -2 to 2, with mean 0 and standard deviation 1 on the data it was made for; no bounds.

    BLIP-L: the prompt's tokens attend to the image's patches, and five linear layers read the first token. Needs images and
    prompts; of a prompt it reads 35 tokens. Differentiable in the images. Preprocessing: bicubic to 224 on the shorter side, the middle cut
    out (what lies outside of a square counts for nothing), normalised, in torch, without the original's rounding to 8 bits. The package
    image-reward, which cannot live beside today's transformers and timm, is not needed.

    Args:
        weights: a file in the published format, or ORGANISATION/REPOSITORY/FILE on the hub; sizes are read off it.
        tokenizer: hub id or folder of BERT's.
        sha256: of the weights; another one is refused.
        device: a GPU if there is one. rows_at_once: images in one call of the model.

    Source: ImageReward, Xu et al. 2023, https://arxiv.org/abs/2304.05977; checksum of the weights not known here.
    """
    from transformers import AutoTokenizer

    key, place = "image_reward.weights", device_of(device)
    state = tensors(key, weight_file(key, weights, sha256=sha256))
    with reading("image_reward.tokenizer", tokenizer, "a folder or a hub id"):
        words = AutoTokenizer.from_pretrained(tokenizer)
        refuse_length("image_reward.tokenizer", words)
    vision, text, head = _blip(key, state)
    for part in (vision, text, head):
        part.to(place)
    size: int = vision.config.image_size

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        seen = vision(pixel_values=standard(fitted(images.to(place), size).clamp(0, 1))).last_hidden_state
        tokens = words(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").to(place)
        warn_of_long("image_reward", TOKENS, bool(tokens["attention_mask"].all(1).any()))
        read = text(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen)
        return (head(read.last_hidden_state[:, 0])[:, 0] - MEAN) / STD

    return on_images("image_reward", score, differentiable=True, rows_at_once=rows_at_once)


def _blip(key: str, state: Mapping[str, Tensor]) -> tuple[Any, Any, nn.Module]:
    """The image encoder, the text encoder and the layers of a state dict. Errors: UserError where it is none of ImageReward."""
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    eye, mouth = _under("blip.visual_encoder.", state), _under("blip.text_encoder.", state)
    mouth.pop("embeddings.position_ids", None)
    try:
        patch, width = eye["patch_embed.proj.weight"].shape[-1], eye["pos_embed"].shape[-1]
        side = round((eye["pos_embed"].shape[1] - 1) ** 0.5) * patch
        vocabulary, hidden = mouth["embeddings.word_embeddings.weight"].shape
        vision = BlipVisionConfig(
            hidden_size=width, intermediate_size=eye["blocks.0.mlp.fc1.weight"].shape[0], num_hidden_layers=_depth(eye, "blocks"),
            num_attention_heads=width // HEAD, image_size=side, patch_size=patch, layer_norm_eps=1e-6,
        )  # fmt: skip
        text = BlipTextConfig(
            vocab_size=vocabulary, hidden_size=hidden, encoder_hidden_size=width, num_hidden_layers=_depth(mouth, "encoder.layer"),
            intermediate_size=mouth["encoder.layer.0.intermediate.dense.weight"].shape[0], num_attention_heads=hidden // HEAD,
            max_position_embeddings=mouth["embeddings.position_embeddings.weight"].shape[0], is_decoder=True, pad_token_id=0,
            bos_token_id=None, sep_token_id=None, eos_token_id=None,
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"{key}: weights of another model: {error.args[0]} is missing") from error
    head = filled(key, linear_head(hidden), _under("mlp.layers.", state))
    seeing = filled(key, BlipVisionModel(vision), {_renamed(name): value for name, value in eye.items()})
    reading = filled(key, BlipTextModel(text, add_pooling_layer=False), mouth)
    return seeing, reading, head


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _depth(state: Mapping[str, Tensor], stem: str) -> int:
    return 1 + max(int(layer[1]) for name in state if (layer := re.match(rf"{re.escape(stem)}\.(\d+)\.", name)))


def _renamed(name: str) -> str:
    """BLIP's own names of the image encoder's parameters as transformers has them."""
    if name.startswith("norm."):
        return name.replace("norm.", "post_layernorm.", 1)
    for theirs, ours in VISION:
        name = name.replace(theirs, ours)
    return name
