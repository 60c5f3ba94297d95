"""CLIPScore: open_clip asked directly, and what cannot be loaded."""

from __future__ import annotations

import pytest
import torch

from mmalign.rewards.pictures.clip_score import clip_score
from mmalign.types import UserError
from tests.helpers.tiny_models import PROMPTS, images


def test_it_is_the_cosine_of_open_clip(models):
    import open_clip

    net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{models / 'open_clip'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{models / 'open_clip'}")(PROMPTS)
    from PIL import Image

    pixels = []
    for picture in images():
        drawn = Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        pixels.append(preprocess(drawn))
    with torch.no_grad():
        seen, read, _ = net.eval()(torch.stack(pixels), tokens)
    reward = clip_score(model=f"local-dir:{models / 'open_clip'}", scale=2.5, device="cpu")
    assert reward(images(), PROMPTS).tolist() == pytest.approx((2.5 * (seen * read).sum(-1)).tolist(), abs=0.02)  # 8-bit rounding
    exact = images(32, 32)  # nothing to resize, so nothing is rounded
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (net.visual.preprocess_cfg["mean"], net.visual.preprocess_cfg["std"]))
    with torch.no_grad():
        seen, read, _ = net((exact - mean) / std, tokens)
    assert reward(exact, PROMPTS).tolist() == pytest.approx((2.5 * (seen * read).sum(-1)).tolist(), abs=1e-5)
    assert (reward.low, reward.high) == (-2.5, 2.5)


@pytest.mark.parametrize(
    ("model", "weights", "says"),
    [
        ("ViT-L-99", "openai", r"clip_score\.model: got 'ViT-L-99'"),
        ("RN50", "no/such/file.pt", r"clip_score\.weights: got 'no/such/file.pt' for RN50"),
        ("local-dir:/no/such/folder", "", r"clip_score\.weights: .*local-dir:/no/such/folder"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(model, weights, says):
    with pytest.raises(UserError, match=says) as caught:
        clip_score(model=model, weights=weights, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"clip_score: needs the package open_clip.*pip install open_clip_torch"):
        clip_score()
