"""PickScore: transformers asked directly, as the model card does it."""

from __future__ import annotations

import pytest
import torch

from mmalign.rewards.pictures.pickscore import pickscore
from mmalign.types import UserError
from tests.helpers.tiny_models import PROMPTS, images


def test_it_is_the_scaled_cosine_of_transformers(models):
    from PIL import Image
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(models / "clip").eval(), AutoTokenizer.from_pretrained(models / "clip")
    processor, text = CLIPImageProcessorPil.from_pretrained(models / "clip"), tokenizer(PROMPTS, padding=True, return_tensors="pt")
    drawn = [Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()) for picture in images(32, 32)]
    inputs = {**text, **processor(images=drawn, return_tensors="pt")}
    with torch.no_grad():
        theirs = model(**inputs).logits_per_image.diagonal()
    reward = pickscore(weights=str(models / "clip"), processor=str(models / "clip"), device="cpu")
    assert reward(images(32, 32), PROMPTS).tolist() == pytest.approx(theirs.tolist(), abs=1e-4)
    drawn = [Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()) for picture in images()]
    inputs = {**text, **processor(images=drawn, return_tensors="pt")}
    with torch.no_grad():
        theirs = model(**inputs).logits_per_image.diagonal()
    assert reward(images(), PROMPTS).tolist() == pytest.approx(theirs.tolist(), abs=0.3)  # rounded to 8 bits, of a range of +-14


def test_both_kinds_of_answers_of_transformers_are_understood():
    from types import SimpleNamespace

    from mmalign.rewards._models.clip import _features

    vectors = torch.rand(2, 3)
    assert _features(vectors) is vectors
    assert _features(SimpleNamespace(pooler_output=vectors)) is vectors


def test_a_folder_that_is_not_there_is_one_line(models, tmp_path):
    with pytest.raises(UserError, match=r"pickscore\.weights: got '.*nothing', takes a folder or a hub id") as caught:
        pickscore(weights=str(tmp_path / "nothing"), processor=str(models / "clip"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"pickscore\.processor: got '.*nothing'"):
        pickscore(weights=str(models / "clip"), processor=str(tmp_path / "nothing"))
