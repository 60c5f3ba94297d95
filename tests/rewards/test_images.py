"""What every reward on images promises: golden scores, gradients where it says so, and refusals before anything is computed."""

from __future__ import annotations

import json

import pytest
import torch

from mmalign.media.preprocessing import fitted
from mmalign.types import UserError
from tests.helpers.tiny_models import GOLDEN, PROMPTS, images, rewards

NAMES = ["clip_score", "hps", "pickscore", "aesthetic", "image_reward", "hpsv3", "jpeg"]
LEARNED = NAMES[:-1]


@pytest.fixture(scope="module")
def found(models):
    return rewards(models)


@pytest.mark.parametrize("name", NAMES)
def test_golden_scores(found, name):
    scores = found[name](images(), PROMPTS)
    near = {"rel": 0.02} if name == "jpeg" else {"abs": 2e-4}  # versions of libjpeg differ by a few bytes
    assert scores.tolist() == pytest.approx(json.loads(GOLDEN.read_text())[name], **near)
    assert scores.shape == (4,) and scores.dtype == torch.float32


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_arrive_at_every_image(found, name):
    outputs = images().requires_grad_()
    found[name](outputs, PROMPTS).sum().backward()
    assert found[name].differentiable
    assert bool(outputs.grad.isfinite().all())
    assert bool((outputs.grad.flatten(1).abs().amax(1) > 0).all())


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_is_that_of_the_score(found, name):
    torch.manual_seed(0)
    outputs = 0.2 + 0.6 * images()
    way = torch.randn_like(outputs)
    way /= way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    leaf = outputs.clone().requires_grad_()
    found[name](leaf, PROMPTS).sum().backward()
    up, down = (found[name](outputs + step * way, PROMPTS).double() for step in (3e-2, -3e-2))
    slope = (leaf.grad * way).flatten(1).sum(1)
    assert ((up - down) / 6e-2).tolist() == pytest.approx(slope.tolist(), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_each_other(found, name):
    whole = found[name](images(), PROMPTS)
    order = [2, 0, 3, 1]
    assert found[name](images()[order], [PROMPTS[row] for row in order]).tolist() == pytest.approx(whole[order].tolist(), abs=1e-5)
    alone = torch.cat([found[name](images()[row : row + 1], PROMPTS[row : row + 1]) for row in range(4)])
    assert alone.tolist() == pytest.approx(whole.tolist(), abs=1e-5)


def test_many_rows_go_in_parts(models):
    import mmalign as mm

    folder = str(models / "clip")
    whole, parts = (mm.rewards.pickscore(weights=folder, processor=folder, device="cpu", rows_at_once=rows) for rows in (32, 3))
    assert parts(images(), PROMPTS).tolist() == pytest.approx(whole(images(), PROMPTS).tolist(), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_with_nan_has_no_score_and_harms_no_other(found, name):
    outputs = images()
    outputs[1, 0, 3, 3] = float("nan")
    outputs[2, 0, 3, 3] = float("inf")
    scores = found[name](outputs, PROMPTS)
    assert scores.isnan().tolist() == [False, True, True, False]
    assert scores[[0, 3]].tolist() == pytest.approx(found[name](images(), PROMPTS)[[0, 3]].tolist(), abs=1e-5)
    outputs[1, 0, 3, 3] = 0.5
    assert found[name](outputs, PROMPTS).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (images() * 2 - 1, "numbers from -1 to 1, takes images in 0..1"),
        (images() * 1.5, r"numbers from 0 to 1\.5"),
        (images() * 255, "to 255"),
        ((images() * 255).to(torch.uint8), "uint8"),
        (images()[:, :2], r"\[4, 2, 48, 40\]"),
        (images()[:3], "3 images for 4 prompts"),
        (images()[:, None], r"videos \[4, 1, 3, 48, 40\].*use: frames"),
        (["a", "b", "c", "d"], "got outputs list"),
    ],
    ids=["minus one", "above one", "255", "bytes", "channels", "count", "video", "text"],
)
def test_what_is_no_image_is_refused_in_one_line(found, name, outputs, says):
    with pytest.raises(UserError, match=says) as caught:
        found[name](outputs, PROMPTS)
    assert str(caught.value).startswith(name) and "\n" not in str(caught.value)


def test_grey_is_three_equal_channels(found):
    grey = images().mean(1, keepdim=True)
    assert found["aesthetic"](grey, PROMPTS).tolist() == pytest.approx(found["aesthetic"](grey.expand(-1, 3, -1, -1), PROMPTS).tolist())


def test_a_long_prompt_is_told_of(found):
    for name in ("clip_score", "pickscore", "hps"):
        with pytest.warns(UserWarning, match=f"{name}: reads the first 77 tokens"):
            found[name](images()[:1], ["word " * 90])


@pytest.mark.parametrize("size", [(48, 40), (64, 100), (31, 37), (32, 32)])
def test_fitting_is_that_of_pil(size):
    """Up to rounding to 8 bits, which PIL does after each of its two passes (and clipping, which softer pictures do not need)."""
    from PIL import Image

    pictures = ((0.2 + 0.6 * images(*size)) * 255).round() / 255
    short = min(size)
    width, height = int(32 * size[1] / short), int(32 * size[0] / short)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    for ours, picture in zip(fitted(pictures, 32).clamp(0, 1), pictures, strict=True):
        drawn = Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        small = drawn.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        theirs = torch.tensor(list(small.tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255
        assert float((ours - theirs).abs().max()) <= 2.01 / 255


def test_the_longest_edge_leaves_black_around():
    tall = fitted(torch.ones(1, 3, 60, 30), 32, edge="longest")
    assert tall.shape == (1, 3, 32, 32)
    assert tall[0, 0, 5].round().tolist() == [0.0] * 8 + [1.0] * 16 + [0.0] * 8
    assert fitted(torch.rand(1, 3, 60, 30), 32, edge="both").shape == (1, 3, 32, 32)
