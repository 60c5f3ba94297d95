"""ImageReward: BLIP and its layers written out, on the published names of parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear

from mmalign.media.preprocessing import standard
from mmalign.rewards.pictures.image_reward import image_reward
from mmalign.types import UserError
from tests.helpers.tiny_models import PROMPTS, images


def reward(models, **changes):
    given = {"weights": str(models / "image_reward.pt"), "tokenizer": str(models / "bert"), "device": "cpu"}
    return image_reward(**{**given, **changes})


def attention(query, key, value, heads, allowed=None):
    """Softmax attention of ``[rows, n, width]`` in heads; allowed: ``[rows, keys]``."""
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    scores = split(query) @ split(key).transpose(-1, -2) / math.sqrt(query.shape[-1] // heads)
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None, None, :].bool(), float("-inf"))
    return (scores.softmax(-1) @ split(value)).transpose(1, 2).flatten(2)


def straight(state, pixels, tokens):
    w = lambda name, x: linear(x, state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    norm = lambda name, x, eps: layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)  # noqa: E731
    eye = "blip.visual_encoder"
    patches = conv2d(pixels, state[f"{eye}.patch_embed.proj.weight"], state[f"{eye}.patch_embed.proj.bias"], stride=8)
    x = torch.cat([state[f"{eye}.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + state[f"{eye}.pos_embed"]
    for block in (f"{eye}.blocks.0", f"{eye}.blocks.1"):
        x = x + w(f"{block}.attn.proj", attention(*w(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1), 2))
        x = x + w(f"{block}.mlp.fc2", gelu(w(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    x = norm(f"{eye}.norm", x, 1e-6)
    text, ids = "blip.text_encoder", tokens["input_ids"]
    y = state[f"{text}.embeddings.word_embeddings.weight"][ids] + state[f"{text}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    y, layer = norm(f"{text}.embeddings.LayerNorm", y, 1e-12), f"{text}.encoder.layer.0"
    for kind, source, allowed in (("attention", None, tokens["attention_mask"]), ("crossattention", x, None)):
        key = y if source is None else source
        mixed = attention(
            w(f"{layer}.{kind}.self.query", y), w(f"{layer}.{kind}.self.key", key), w(f"{layer}.{kind}.self.value", key), 1, allowed
        )
        y = norm(f"{layer}.{kind}.output.LayerNorm", w(f"{layer}.{kind}.output.dense", mixed) + y, 1e-12)
    y = norm(f"{layer}.output.LayerNorm", w(f"{layer}.output.dense", gelu(w(f"{layer}.intermediate.dense", y))) + y, 1e-12)[:, 0]
    for number in (0, 2, 4, 6, 7):
        y = w(f"mlp.layers.{number}", y)
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_it_is_blip_and_five_layers(models):
    from transformers import AutoTokenizer

    state = torch.load(models / "image_reward.pt", weights_only=True)
    tokens = AutoTokenizer.from_pretrained(models / "bert")(PROMPTS, padding=True, return_tensors="pt")
    exact = images(32, 32)  # nothing to resize
    theirs = straight(state, standard(exact), tokens)
    assert float(theirs.std()) > 0.05
    assert reward(models)(exact, PROMPTS).tolist() == pytest.approx(theirs.tolist(), abs=1e-4)


def test_prompts_matter_and_long_ones_are_told_of(models):
    scores = reward(models)(images()[:1].expand(2, -1, -1, -1), ["a red fox", "two blue birds on a wire"])
    assert abs(float(scores[0] - scores[1])) > 1e-3
    with pytest.warns(UserWarning, match="image_reward: reads the first 35 tokens"):
        reward(models)(images()[:1], ["a red fox " * 20])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {name: value for name, value in state.items() if "pos_embed" not in name}, "pos_embed is missing"),
        (lambda state: {**state, "blip.visual_encoder.norm.bias": torch.zeros(3)}, r"post_layernorm\.bias is \[3\], takes \[128\]"),
        (
            lambda state: {name: value for name, value in state.items() if "crossattention.self.key" not in name},
            "cross.*is missing",
        ),
        (lambda state: {**state, "mlp.layers.8.bias": torch.zeros(1)}, r"8\.bias is not known"),
    ],
)
def test_weights_of_another_model_are_refused(models, tmp_path, change, says):
    torch.save(change(torch.load(models / "image_reward.pt", weights_only=True)), tmp_path / "other.pt")
    with pytest.raises(UserError, match=rf"image_reward\.weights: weights of another model: .*{says}"):
        reward(models, weights=str(tmp_path / "other.pt"))


def test_what_is_not_there_is_one_line(models, tmp_path):
    with pytest.raises(UserError, match=r"image_reward\.weights: no such file"):
        reward(models, weights="nothing.pt")
    with pytest.raises(UserError, match=r"image_reward\.tokenizer: got '.*nothing'") as caught:
        reward(models, tokenizer=str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
