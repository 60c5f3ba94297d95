"""Statistics of pixels, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mmalign.training.evaluations import pixels
from mmalign.training.evaluations.pixels import pixel_statistics

CHECKS = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float()


def of(*pictures: torch.Tensor) -> dict[str, list[float]]:
    return {name.removeprefix("pixels/"): values.tolist() for name, values in pixel_statistics(torch.stack(pictures)).items()}


def test_grey_pictures() -> None:
    found = of(torch.zeros(1, 8, 8), torch.ones(1, 8, 8), CHECKS[None], CHECKS[None] / 2)
    assert "saturation" not in found and "motion" not in found
    assert found["brightness"] == pytest.approx([0, 1, 0.5, 0.25])
    assert found["contrast"] == pytest.approx([0, 0, 0.5, 0.25])
    assert found["edges"] == pytest.approx([0, 0, math.sqrt(2), math.sqrt(0.5)])
    assert found["colour_entropy"] == pytest.approx([0, 0, 1, 1], abs=1e-6)
    assert found["high_frequency"][2:] == pytest.approx([1, 1]) and all(math.isnan(value) for value in found["high_frequency"][:2])


def test_colours() -> None:
    red, grey = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 4), torch.full((3, 4, 4), 0.5)
    rose = torch.tensor([1.0, 0.5, 0.5]).view(3, 1, 1).expand(3, 4, 4)
    assert of(red / 2)["saturation"] == pytest.approx([1])
    found = of(red, grey, rose, torch.zeros(3, 4, 4), torch.cat([red[:, :, :2], grey[:, :, 2:]], 2))
    assert found["saturation"] == pytest.approx([1, 0, 0.5, 0, 0.5])
    assert found["brightness"] == pytest.approx([0.299, 0.5, 0.299 + 0.701 / 2, 0, (0.299 + 0.5) / 2])
    assert found["colour_entropy"] == pytest.approx([0, 0, 0, 0, 1], abs=1e-6)


def test_waves_are_told_by_their_length() -> None:
    slow, fast = ((2 * math.pi * torch.arange(16) / length).cos() / 2 + 0.5 for length in (8, 3.2))  # 0.125 and 0.3125 cycles a pixel
    both = (slow + fast) / 2
    found = of(*(wave.expand(1, 16, 16) for wave in (slow, fast, both)))
    assert found["high_frequency"] == pytest.approx([0, 1, 0.5], abs=1e-6)


def test_videos_are_means_over_frames_and_move() -> None:
    still, dims = torch.full((4, 1, 8, 8), 0.5), torch.linspace(1, 0.4, 4).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    found = of(still, dims)
    assert found["motion"] == pytest.approx([0, 0.2]) and found["brightness"] == pytest.approx([0.5, 0.7])
    assert math.isnan(of(still[:1])["motion"][0])
    blinking = (torch.arange(99) % 2).float().view(99, 1, 1, 1).expand(99, 1, 2, 2)
    assert of(blinking)["motion"] == [1]


def test_what_is_not_finite_has_none_and_its_neighbours_have() -> None:
    broken = CHECKS[None].clone()
    broken[0, 3, 3] = math.inf
    found = of(broken, CHECKS[None])
    assert all(math.isnan(first) and math.isfinite(second) for first, second in found.values())


def test_rows_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    whole = pixel_statistics(pictures)
    monkeypatch.setattr(pixels, "AT_ONCE", 2 * 3 * 36)
    for name, values in pixel_statistics(pictures).items():
        torch.testing.assert_close(values, whole[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outputs", [["words"], torch.zeros(3, 2), torch.zeros(2, 4, 8, 8), torch.zeros(0, 1, 8, 8), None])
def test_what_is_no_picture_has_none(outputs: object) -> None:
    assert pixel_statistics(outputs) == {}
