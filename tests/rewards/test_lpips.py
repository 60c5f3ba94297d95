"""LPIPS by hand, on nets of the published shapes with few channels and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

import mmalign as mm
from mmalign.types import UserError

VGG = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
ALEX = {1: ((0, 11),), 2: ((3, 5),), 3: ((6, 3),), 4: ((8, 3),), 5: ((10, 3),)}


def state(kind: str) -> dict[str, Tensor]:
    rng, before, found = torch.Generator().manual_seed(0), 3, dict[str, Tensor]()
    for number in range(1, 6):
        layers = [(place, 3) for place in VGG[number]] if kind == "vgg" else ALEX[number]
        for place, side in layers:
            width = 2 + number
            found[f"net.slice{number}.{place}.weight"] = torch.randn(width, before, side, side, generator=rng) / side
            found[f"net.slice{number}.{place}.bias"] = torch.randn(width, generator=rng) / 5
            before = width
        found[f"lin{number - 1}.model.1.weight"] = torch.rand(1, before, 1, 1, generator=rng)
    return found | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}


def by_hand(kind: str, weights: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """The states behind each slice, each place of unit length."""
    x = (2 * image.double() - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    found = []
    for number in range(1, 6):
        if kind == "vgg":
            x = max_pool2d(x, 2, 2) if number > 1 else x
        elif number in (2, 3):
            x = max_pool2d(x, 3, 2)
        for place in VGG[number] if kind == "vgg" else [place for place, _ in ALEX[number]]:
            weight, bias = (weights[f"net.slice{number}.{place}.{part}"].double() for part in ("weight", "bias"))
            stride, padding = {11: (4, 2), 5: (1, 2), 3: (1, 1)}[weight.shape[-1]]
            x = conv2d(x, weight, bias, stride, padding).clamp(min=0)
        found.append(x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12))
    return found


@pytest.mark.parametrize("kind", ["vgg", "alex"])
def test_the_distance_is_the_published_one(kind: str, tmp_path: Path) -> None:
    weights, side = state(kind), 32 if kind == "vgg" else 64
    torch.save(weights, tmp_path / "net.pt")
    images, wanted = torch.rand(2, 3, 3, side, side, generator=torch.Generator().manual_seed(1)).unbind(0)
    total = torch.zeros(3).double()
    for number, (one, other) in enumerate(zip(by_hand(kind, weights, images), by_hand(kind, weights, wanted), strict=True)):
        total += ((one - other) ** 2 * weights[f"lin{number}.model.1.weight"].double()).sum(1).mean((1, 2))
    prompts: list[Any] = [[{"role": "user", "content": [{"type": "image", "image": image}]}] for image in wanted]
    reward = mm.rewards.lpips(weights=str(tmp_path / "net.pt"), device="cpu", rows_at_once=2)
    images.requires_grad_()
    scores = reward(images, prompts)
    torch.testing.assert_close(-scores.double(), total, rtol=1e-4, atol=1e-6)
    scores.sum().backward()
    assert bool(images.grad.isfinite().all()) and float(images.grad.abs().max()) > 0
    same = wanted.clone().requires_grad_()
    reward(same, prompts).sum().backward()
    assert float(reward(wanted, prompts).abs().max()) == 0 and bool(same.grad.isfinite().all())
    assert bool(reward(images[:1], ["words alone"]).isnan().all())
    with pytest.raises(UserError, match=r"^lpips: got images of 8 x 8, of which the net leaves nothing; takes larger ones$"):
        reward(torch.rand(1, 3, 8, 8), [[{"role": "user", "content": [{"type": "image", "image": torch.rand(3, 8, 8)}]}]])


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({name: value for name, value in state("vgg").items() if not name.startswith("lin3")}, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"^lpips.weights: holds no lin3.model.1.weight of such a net; takes the state dict of lpips.LPIPS"):
        mm.rewards.lpips(weights=str(tmp_path / "net.pt"))
