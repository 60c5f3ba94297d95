"""Rewards on videos: closed forms, golden scores, gradients, and what is no video."""

from __future__ import annotations

import json

import pytest
import torch

import mmalign as mm
from mmalign.types import UserError
from tests.helpers.tiny_models import GOLDEN, PROMPTS, videos

NAMES = ["motion", "frame_consistency", "feature_prediction", "video_reward"]


@pytest.fixture(scope="module")
def found(models):
    from tests.helpers.tiny_models import video_rewards

    return video_rewards(models)


@pytest.mark.parametrize("name", NAMES)
def test_golden_scores(found, name):
    scores = found[name](videos(), PROMPTS[:2])
    assert scores.tolist() == pytest.approx(json.loads(GOLDEN.read_text())[name], abs=2e-4)
    assert found[name].low is None or bool((scores >= found[name].low).all())
    assert found[name].high is None or bool((scores <= found[name].high).all())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_arrive_at_every_video_and_rows_are_apart(found, name):
    outputs = (0.2 + 0.6 * videos()).requires_grad_()
    scores = found[name](outputs, PROMPTS[:2])
    scores.sum().backward()
    assert found[name].differentiable and bool((outputs.grad.flatten(1).abs().amax(1) > 0).all())
    with torch.no_grad():
        assert found[name](outputs[1:], PROMPTS[1:2]).item() == pytest.approx(scores[1].item(), abs=1e-5)
        broken = outputs.clone()
        broken[0, 2, 1, 3, 3] = float("nan")
        again = found[name](broken, PROMPTS[:2])
    assert again.isnan().tolist() == [True, False] and again[1].item() == pytest.approx(scores[1].item(), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (videos()[:, 0], r"got outputs torch\.float32 \[2, 3, 24, 20\], takes videos"),
        (videos()[:, :1], "got videos of 1 frames, takes at least"),
        (videos() * 255, "numbers from 0 to 255"),
        (videos()[:1], "1 videos for 2 prompts"),
        (["a", "b"], "got outputs list"),
    ],
    ids=["images", "one frame", "255", "count", "text"],
)
def test_what_is_no_video_is_refused(found, name, outputs, says):
    with pytest.raises(UserError, match=says) as caught:
        found[name](outputs, PROMPTS[:2])
    assert str(caught.value).startswith(name)


def test_motion_is_the_mean_difference_up_to_what_is_wanted():
    steps = torch.tensor([0.0, 0.1, 0.1, 0.4])[None, :, None, None, None].expand(1, 4, 3, 2, 2)
    assert mm.rewards.motion(wanted=0.5)(steps, ["p"]).item() == pytest.approx(0.4 / 3 / 0.5)
    assert mm.rewards.motion(wanted=0.1)(steps, ["p"]).item() == 1
    assert mm.rewards.motion()(steps[:, 1:3], ["p"]).item() == 0


def test_consistency_is_the_mean_of_two_cosines(models):
    from mmalign.rewards.pictures.subject_similarity import load_dino

    see, frames = load_dino("x", str(models / "dino"), "cpu"), videos()[0]
    f = see(frames)
    wanted = [(max(0, float(f[0] @ f[t])) + max(0, float(f[t - 1] @ f[t]))) / 2 for t in range(1, 8)]
    reward = mm.rewards.frame_consistency(weights=str(models / "dino"), device="cpu")
    assert reward(frames[None], ["p"]).item() == pytest.approx(sum(wanted) / 7, abs=1e-5)
    assert reward(frames[:1].expand(4, -1, -1, -1)[None], ["p"]).item() == pytest.approx(1, abs=1e-5)
    clip = mm.rewards.frame_consistency(features="clip", weights=str(models / "clip"), device="cpu")
    assert 0 <= clip(frames[None], ["p"]).item() < 1


def test_prediction_is_of_the_frames_that_were_not_shown(models):
    from transformers import VJEPA2Model

    reward = mm.rewards.feature_prediction(weights=str(models / "jepa"), device="cpu", context=0.75)
    frames = videos()[:1, :, :, :16, :16]
    mean, std = (torch.tensor(values).view(1, 1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model = VJEPA2Model.from_pretrained(models / "jepa").eval()
    shown, rest = [torch.arange(12)[None]], [torch.arange(12, 16)[None]]
    with torch.no_grad():
        predicted = model(pixel_values_videos=(frames - mean) / std, context_mask=shown, target_mask=rest).predictor_output
    error = (predicted.last_hidden_state - predicted.target_hidden_state).abs().mean().item()
    assert reward(frames, ["p"]).item() == pytest.approx(-error, abs=1e-4)
    longer = torch.cat([frames, frames[:, :1]], dim=1)  # a frame too many for whole pairs
    assert reward(longer, ["p"]).item() == pytest.approx(-error, abs=1e-4)


@pytest.mark.parametrize(("over", "of"), [("mean", lambda scores: sum(scores) / 3), ("worst", min)])
def test_windows_slide_over_the_video_and_end_with_it(models, over, of):
    path, frames = str(models / "jepa"), videos()[:1, :, :, :16, :16]
    frames = torch.cat([frames, frames[:, :2].flip(1)], dim=1)  # 10 frames: windows of 6 at 0, 2 and 4
    one = mm.rewards.feature_prediction(weights=path, device="cpu")
    each = [one(frames[:, start : start + 6], ["p"]).item() for start in (0, 2, 4)]
    slid = mm.rewards.feature_prediction(weights=path, device="cpu", window=6, stride=2, over=over)
    assert slid(frames, ["p"]).item() == pytest.approx(of(each), abs=1e-5) and len({round(score, 5) for score in each}) == 3
    wide = mm.rewards.feature_prediction(weights=path, device="cpu", window=64)
    assert wide(frames, ["p"]).item() == pytest.approx(one(frames, ["p"]).item(), abs=1e-6)
    with pytest.raises(UserError, match=r"feature_prediction: got window=2, .*takes windows of 4 frames or more"):
        mm.rewards.feature_prediction(weights=path, device="cpu", window=2)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: mm.rewards.motion(wanted=0), r"motion\.wanted: got 0"),
        (lambda: mm.rewards.frame_consistency(features="vit"), r"frame_consistency\.features: got 'vit'"),
        (lambda: mm.rewards.frame_consistency(weights="./nowhere"), r"frame_consistency\.weights: got '\./nowhere'"),
        (lambda: mm.rewards.feature_prediction(weights="./nowhere"), r"feature_prediction\.weights: got '\./nowhere'"),
        (lambda: mm.rewards.feature_prediction(context=1.0), r"feature_prediction\.context: got 1"),
    ],
)
def test_mistakes_are_one_line(build, says):
    with pytest.raises(UserError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)
