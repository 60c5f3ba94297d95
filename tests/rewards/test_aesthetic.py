"""The aesthetic predictor: layers applied one after the other, and files that hold something else."""

from __future__ import annotations

import pytest
import torch

from mmalign.rewards.pictures.aesthetic import aesthetic
from mmalign.types import UserError
from tests.helpers.tiny_models import PROMPTS, images


def test_it_is_five_layers_on_the_unit_vector(models):
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel

    model, state = CLIPModel.from_pretrained(models / "clip").eval(), torch.load(models / "head.pth", weights_only=True)
    drawn = [Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()) for picture in images(32, 32)]
    pixels = CLIPImageProcessorPil.from_pretrained(models / "clip")(images=drawn, return_tensors="pt")
    with torch.no_grad():
        vector = model.visual_projection(model.vision_model(**pixels).pooler_output)
        vector = vector / vector.norm(dim=-1, keepdim=True)
        for number in (0, 2, 4, 6, 7):
            vector = vector @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    reward = aesthetic(weights=str(models / "clip"), head=str(models / "head.pth"), device="cpu")
    assert reward(images(32, 32), PROMPTS).tolist() == pytest.approx(vector[:, 0].tolist(), abs=1e-5)
    assert reward(images(32, 32), ["x"] * 4).tolist() == reward(images(32, 32), PROMPTS).tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {**state, "layers.2.weight": torch.zeros(3, 3)}, r"2\.weight is \[3, 3\], takes \[128, 1024\]"),
        (lambda state: {name: value for name, value in state.items() if "7" not in name}, r"7\.weight is missing, and 1 more"),
        (lambda state: {**state, "layers.9.bias": torch.zeros(1)}, r"9\.bias is not known"),
        (lambda state: {**state, "layers.9.bias": "text"}, "takes a state dict"),
    ],
)
def test_a_head_of_another_model_is_refused(models, tmp_path, change, says):
    torch.save(change(torch.load(models / "head.pth", weights_only=True)), tmp_path / "head.pth")
    with pytest.raises(UserError, match=rf"aesthetic\.head: .*{says}"):
        aesthetic(weights=str(models / "clip"), head=str(tmp_path / "head.pth"), device="cpu")


def test_a_file_that_is_no_weights_is_refused(models, tmp_path):
    (tmp_path / "head.pth").write_bytes(b"\x80\x04not a model")
    with pytest.raises(UserError, match=r"aesthetic\.head: .*cannot be read as weights") as caught:
        aesthetic(weights=str(models / "clip"), head=str(tmp_path / "head.pth"))
    assert "\n" not in str(caught.value)
