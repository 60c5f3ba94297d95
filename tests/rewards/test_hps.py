"""HPSv2: open_clip asked directly with hpsv2's preprocessing, checksums, and files of another model."""

from __future__ import annotations

import hashlib

import pytest
import torch

from mmalign.rewards.pictures.hps import hps
from mmalign.types import UserError
from tests.helpers.tiny_models import MEAN, PROMPTS, STD, images


@pytest.mark.parametrize("antialias", [True, False])
def test_it_is_the_cosine_after_the_longer_side_is_brought_to_size(models, antialias):
    import open_clip
    from torchvision.transforms.functional import InterpolationMode, normalize, pad, resize

    net = open_clip.create_model("tiny-hps")
    net.load_state_dict(torch.load(models / "hps.pt", weights_only=True)["state_dict"])
    pixels = []
    for picture in images():  # 48 x 40 -> 32 x 27, and 2 and 3 black columns
        small = pad(resize(picture, [32, 27], InterpolationMode.BICUBIC, antialias=antialias), [2, 0, 3, 0])
        pixels.append(normalize(small, MEAN, STD))
    with torch.no_grad():
        seen, read, _ = net.eval()(torch.stack(pixels), open_clip.get_tokenizer("ViT-H-14")(PROMPTS))
    scores = hps(model="tiny-hps", weights=str(models / "hps.pt"), antialias=antialias, device="cpu")(images(), PROMPTS)
    assert scores.tolist() == pytest.approx((seen * read).sum(-1).tolist(), abs=1e-5)


def test_a_checksum_that_differs_is_refused(models):
    right = hashlib.sha256((models / "hps.pt").read_bytes()).hexdigest()
    hps(model="tiny-hps", weights=str(models / "hps.pt"), sha256=right.upper(), device="cpu")
    with pytest.raises(UserError, match=rf"hps\.weights: .* has SHA-256 {right}, takes 00"):
        hps(model="tiny-hps", weights=str(models / "hps.pt"), sha256="00", device="cpu")


@pytest.mark.parametrize("weights", ["weights/HPS.pt", "/no/such/HPS.pt", "HPS.pt"])
def test_a_missing_file_is_one_line(weights):
    with pytest.raises(UserError, match=rf"hps\.weights: no such file: {weights}") as caught:
        hps(weights=weights)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(models):
    with pytest.raises(UserError, match=r"hps\.weights: got .*head\.pth' for tiny-hps"):
        hps(model="tiny-hps", weights=str(models / "head.pth"), device="cpu")
