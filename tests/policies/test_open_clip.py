"""A reward model of images: what open_clip makes of an image and its prompt, trained, and used as a reward with a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair
from mmalign.types import UserError

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PROMPTS = ["a handwritten seven", "a two", "a two"]


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def reader(**settings: Any) -> Any:
    return mm.policies.open_clip(TINY, device="cpu", **settings)


def features(policy: Any, prompts: list[str], outputs: torch.Tensor) -> torch.Tensor:
    rollout = policy.encode(prompts, outputs, torch.arange(len(prompts)), None)
    return policy.reader.features(rollout, torch.arange(len(prompts)))


def test_with_weights_of_one_a_product_is_the_cosine_times_its_scale() -> None:
    import open_clip

    policy = mm.policies.scorer(reader())
    with torch.no_grad():
        policy.head.weight.fill_(1.0)
    net, outputs = policy.reader.model, images()
    pixels = (outputs.expand(-1, 3, -1, -1) - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    ).view(1, 3, 1, 1)
    words = open_clip.SimpleTokenizer(context_length=8)(PROMPTS)
    wanted = net.logit_scale.exp() * (net.encode_image(pixels, normalize=True) * net.encode_text(words, normalize=True)).sum(-1)
    torch.testing.assert_close(policy.score(PROMPTS, outputs)[:, 0].float(), wanted.detach(), rtol=1e-5, atol=1e-6)
    both, image = (mm.policies.scorer(reader(features=kind)) for kind in ("both", "image"))
    torch.testing.assert_close(features(both, PROMPTS, outputs)[:, 8:], features(policy, PROMPTS, outputs))
    torch.testing.assert_close(features(both, PROMPTS, outputs)[:, :8], features(image, PROMPTS, outputs))
    assert features(image, PROMPTS, outputs).square().sum(1).tolist() == pytest.approx([8.0] * 3, rel=1e-5)


def test_what_no_feature_depends_on_is_not_trained_and_random_weights_have_a_seed() -> None:
    image, product = reader(features="image"), reader()
    assert not any(name.startswith(("transformer", "token", "text", "logit")) for name in image.sets.trained)
    assert {"text_projection", "logit_scale", "visual.proj"} <= product.sets.trained.keys()
    again, other = reader(), reader(seed=1)
    assert torch.equal(again.model.visual.proj, product.model.visual.proj)
    assert not torch.equal(other.model.visual.proj, product.model.visual.proj)


def test_a_video_is_the_mean_of_its_frames() -> None:
    policy = mm.policies.scorer(reader(features="image"))
    still = images(2)
    moving = torch.stack([still, still], 1)
    torch.testing.assert_close(features(policy, PROMPTS[:2], moving), features(policy, PROMPTS[:2], still))
    mixed = torch.stack([still, still.flip(0)], 1)
    torch.testing.assert_close(*features(policy, PROMPTS[:2], mixed))


def bright() -> list[Pair]:
    """Whose brighter image is the better one."""
    some = images(48, seed=3) * torch.linspace(0.2, 1.0, 48)[:, None, None, None]
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).view(-1, 2).tolist()
    return [Pair("a two", some[a], some[b], float(some[a].mean() > some[b].mean()), f"{a} {b}") for a, b in order]


def test_a_run_is_a_reward_with_a_gradient(tmp_path: Path) -> None:
    settings = {"folder": str(tmp_path), "name": "rm", "trackers": (), "checkpoint_every": 30}
    run = mm.offline(
        mm.policies.scorer(mm.policies.open_clip(TINY, features="image")), bright()[:16], mm.methods.bradley_terry(), steps=30,
        batch={"records": 16}, optimizer=mm.adamw(rate=1e-2, ema=0.9), evaluation={"records": bright()[16:], "every": 30}, run=settings,
    )  # fmt: skip
    assert run.summary["held_out/accuracy_after"] >= 0.75 and run.summary["held_out/accuracy_before"] == 0.5
    reward = mm.rewards.trained(str(run.path))
    assert reward.differentiable
    outputs = (0.1 + 0.8 * images()).requires_grad_()
    scores = reward(outputs, PROMPTS)
    (gradient,) = torch.autograd.grad(scores.sum(), outputs)
    assert bool(gradient.flatten(1).abs().sum(1).gt(0).all())
    step = 1e-3 * torch.sign(gradient)
    moved = reward(outputs.detach() + step, PROMPTS) - reward(outputs.detach() - step, PROMPTS)
    torch.testing.assert_close(moved.float(), 2 * (gradient * step).flatten(1).sum(1), rtol=0.05, atol=1e-3)
    assert not reward(outputs.detach(), PROMPTS).requires_grad
    with torch.no_grad():
        assert not reward(outputs, PROMPTS).requires_grad


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"architecture": "ViT-Q-1"}, r"policy\.of\.architecture: got 'ViT-Q-1', takes a model of open_clip"),
        ({"architecture": {"embed_dim": 8}}, r"policy\.of\.architecture: got \{'embed_dim': 8\}, which open_clip cannot load"),
        ({"architecture": TINY, "features": "text"}, r"open_clip\.features: got 'text', takes 'image' or 'product' or 'both'"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        mm.policies.open_clip(**given)


def test_words_are_no_pictures() -> None:
    with pytest.raises(UserError, match=r"policy\.of: open_clip reads images .*, got str; of words, takes transformers"):
        mm.policies.scorer(reader()).score(["a two"], ["words"])
    with pytest.raises(UserError, match=r"policy\.of: got a str, takes one that transformers makes, or a reader"):
        mm.policies.scorer("words")
