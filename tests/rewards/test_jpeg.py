"""JPEG size: PIL asked directly."""

from __future__ import annotations

import io

import pytest
import torch

from mmalign.rewards.pictures.jpeg import jpeg
from mmalign.types import UserError
from tests.helpers.tiny_models import PROMPTS, images


@pytest.mark.parametrize("quality", [95, 30])
def test_it_is_the_size_of_the_file(quality):
    from PIL import Image

    sizes = []
    for picture in images():
        file = io.BytesIO()
        Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        sizes.append(len(file.getvalue()) / 1000)
    assert jpeg(want="large", quality=quality)(images(), PROMPTS).tolist() == pytest.approx(sizes)
    assert jpeg(quality=quality)(images(), PROMPTS).tolist() == pytest.approx([-size for size in sizes])


def test_noise_is_larger_than_a_plain_image():
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small, large = jpeg()(torch.cat([torch.full_like(noise, 0.5), noise]), ["", ""]).tolist()
    assert large < small < 0
    assert not jpeg().differentiable and jpeg().high == 0 and jpeg(want="large").low == 0


@pytest.mark.parametrize(("given", "says"), [({"quality": 0}, "quality"), ({"quality": 96}, "quality"), ({"want": "tiny"}, "want")])
def test_mistakes_are_one_line(given, says):
    with pytest.raises(UserError, match=rf"jpeg\.{says}: got"):
        jpeg(**given)
