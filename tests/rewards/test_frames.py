"""A video's reward: the mean over frames, none of them forgotten, and what passes through."""

from __future__ import annotations

import pytest
import torch

from mmalign.rewards.videos.frames import frames
from mmalign.types import UserError
from tests.helpers.tiny_models import PROMPTS, images, rewards


def brightness(outputs, prompts, **columns):
    assert len(outputs) == len(prompts)
    return outputs.flatten(1).mean(1) + torch.tensor([float(len(prompt)) for prompt in prompts])


VIDEOS = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(2, 5, 3, 4, 4) / 10 + torch.tensor([0.0, 0.5]).view(2, 1, 1, 1, 1)


@pytest.mark.parametrize(("stride", "mean"), [(1, 0.2), (2, 0.2), (3, 0.15), (9, 0.0)])
def test_the_mean_of_every_so_manieth_frame(stride, mean):
    assert frames(of=brightness, stride=stride)(VIDEOS, ["a", "bcd"]).tolist() == pytest.approx([1 + mean, 3.5 + mean])


def test_a_real_reward_and_its_gradient(models):
    reward = rewards(models)["pickscore"]
    video = torch.stack([images(), images().flip(-1)], dim=1).requires_grad_()
    scorer = frames(of=reward)
    scores = scorer(video, PROMPTS)
    assert scores.tolist() == pytest.approx(((reward(images(), PROMPTS) + reward(images().flip(-1), PROMPTS)) / 2).tolist(), abs=1e-4)
    scores.sum().backward()
    assert scorer.differentiable and bool((video.grad.flatten(2).abs().amax(2) > 0).all())
    assert (scorer.low, scorer.high) == (reward.low, reward.high)


def test_parts_stay_apart_and_columns_are_repeated():
    def two(outputs, prompts, *, number):
        return {"bright": outputs.flatten(1).mean(1), "number": torch.tensor(number)}

    scores = frames(of=two)(VIDEOS, ["a", "b"], number=[1.0, 2.0])
    assert scores["bright"].tolist() == pytest.approx([0.2, 0.7])
    assert scores["number"].tolist() == [1.0, 2.0]


def test_a_frame_without_a_score_leaves_its_video_without_one():
    def some(outputs, prompts):
        return torch.where(outputs.flatten(1).mean(1) > 0.85, float("nan"), outputs.flatten(1).mean(1))

    assert frames(of=some)(VIDEOS, ["a", "b"]).isnan().tolist() == [False, True]
    assert not frames(of=some).differentiable


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: frames(of=brightness, stride=0), r"frames\.stride: got 0"),
        (lambda: frames(of="pickscore"), r"frames\.of: got str"),
        (lambda: frames(of=brightness)(VIDEOS[:, 0], ["a", "b"]), r"got outputs \[2, 3, 4, 4\] for 2 prompts, takes videos"),
        (lambda: frames(of=brightness)(VIDEOS, ["a"]), "for 1 prompts"),
    ],
)
def test_mistakes_are_one_line(act, says):
    with pytest.raises(UserError, match=says):
        act()


def test_a_gradient_arrives_at_some_frames_and_on_average_is_that_of_all():
    def squared(images, prompts):
        seen.append((len(images), torch.is_grad_enabled()))
        return images.square().flatten(1).mean(1)

    seen: list[tuple[int, bool]] = []
    videos = torch.rand(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (whole,) = torch.autograd.grad(frames(of=squared)(videos, ["a", "b"]).sum(), videos)
    masked = frames(of=squared, learned=1)
    total, chosen = torch.zeros_like(whole), set()
    for step in range(40):
        masked.at(step)
        scores = masked(videos, ["a", "b"])
        torch.testing.assert_close(scores, frames(of=squared)(videos, ["a", "b"]))
        (gradient,) = torch.autograd.grad(scores.sum(), videos)
        (frame,) = gradient.flatten(2).abs().sum(-1).amax(0).nonzero().flatten().tolist()
        torch.testing.assert_close(gradient[:, frame], 4 * whole[:, frame])
        chosen.add(frame)
        total += gradient / 40
    assert chosen == {0, 1, 2, 3} and {(2, True), (6, False)} <= set(seen)
    with pytest.raises(UserError, match=r"frames\.learned: got 5, and 4 frames are scored; takes at most these"):
        frames(of=squared, learned=5)(videos, ["a", "b"])
