"""The world of digits that are written as codes: what its base can do, its configs, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.config import build, check, load
from mmalign.rooms import resource
from mmalign.types import UserError
from mmalign.worlds.digits.data import PROMPTS, real
from mmalign.worlds.token_digits.base import centres, patches, token_digits
from tests.helpers.small_run import rows


def test_the_base_draws_a_third_of_what_it_is_asked_for_and_guidance_helps():
    policy = mm.policies.image_tokens(mm.policies.transformers(token_digits(), max_completion=1))
    asked, gold = PROMPTS * 10, mm.worlds.digits_gold()
    plain, guided = (gold(policy.generate(asked, list(range(100)), guidance=scale), asked).mean() for scale in (1.0, 3.0))
    assert 0.15 < float(plain) < 0.45 < float(guided) < 0.85  # .30 and .64 of 500; a standard error of .05
    images, labels = real("B")
    kept = policy.pixels.decode(policy.pixels.encode(images))
    assert float((kept - images).square().mean().sqrt()) < 0.15
    assert float(gold(kept, [PROMPTS[digit] for digit in labels.tolist()]).mean()) > 0.9  # the codebook keeps what a digit is


def test_patches_and_their_centres():
    images = torch.arange(64.0).view(1, 1, 8, 8)
    assert patches(images)[0, 5].tolist() == [18.0, 19.0, 26.0, 27.0]
    points = torch.tensor([[0.0], [0.2], [5.0], [5.2]])
    assert centres(points, 2).flatten().tolist() == pytest.approx([0.1, 5.1])


def test_scans_are_real_and_called_by_their_names():
    prompts = mm.worlds.token_digits_scans(count=20)
    words, image = prompts[3][0]["content"]
    images, labels = real("A")
    place = int((images - image["image"]).flatten(1).abs().sum(1).argmin())
    assert torch.equal(images[place], image["image"]) and words["text"] == PROMPTS[int(labels[place])]
    with pytest.raises(UserError, match="token_digits: no model in"):
        token_digits(path="nowhere")


@pytest.mark.parametrize("name", sorted(file.stem for file in resource("configs/token_digits").glob("*.yaml")))
def test_configs_have_no_mistakes(name):
    assert check(load(f"token_digits/{name}")) == []


def test_it_learns(tmp_path: Path):
    """Six steps of the config: the proxy's reward of its own samples grows."""
    node = load("token_digits/grpo", ["steps=6", f"run.folder={tmp_path}", "evaluation.samples=2", "evaluation.every=6"])
    run = build(node)
    rewards = [row["reward"] for row in rows(run.path) if "reward" in row]
    assert rewards[-1] > rewards[0] + 0.1
