"""What becomes of a user's own call under guidance: its pictures, prompts with columns, progress bar and callbacks."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch

import mmalign as mm
from mmalign.guidance._calls import repeated, user_call
from mmalign.policies.pipelines.calls.interception import Made
from mmalign.policies.twins import pipelines
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import Prompt, UserError
from mmalign.worlds.digits.data import PROMPTS
from mmalign.worlds.moving_digits import base, data

WAYS = {
    "fk": {"particles": 3}, "best_of": {"count": 3}, "best_of in parts": {"count": 3, "rows_at_once": 2}, "svdd": {"particles": 2},
    "universal": {}, "mpgd": {},
}  # fmt: skip
PROXY = mm.worlds.moving_digits_proxy()


@functools.cache
def _loaded():
    return base.moving_digits()


@pytest.fixture
def videos():
    return copy.deepcopy(_loaded())


def made(pipe, prompts, image, way, **more):
    call = {**base.CALL, "guidance_scale": 1.0, "num_inference_steps": 4, "output_type": "pt", **more}
    with mm.guide(pipe, PROXY, guidance=way.split()[0], **WAYS.get(way, {})):
        return pipe(prompt=prompts, image=image, generator=torch.Generator().manual_seed(0), **call).frames


@pytest.mark.parametrize("way", WAYS)
def test_every_row_begins_with_its_prompt_s_own_picture(videos, way):
    """Three prompts, as many pictures; one of each; three prompts that share one: however rows are multiplied, split and chosen."""
    prompts = data.moving_digits_prompts(each=1)[:3]
    stills = data.moving_digits_stills()(prompts)["image"]
    several = made(videos, prompts, stills, way)
    torch.testing.assert_close(several[:, 0], stills, atol=0.02, rtol=0)
    alone = made(videos, prompts[1], stills[1:2], way)
    torch.testing.assert_close(alone[:, 0], stills[1:2], atol=0.02, rtol=0)
    shared = made(videos, prompts, stills[2:], way)
    torch.testing.assert_close(shared[:, 0], stills[2:].expand(3, -1, -1, -1), atol=0.02, rtol=0)


def test_pictures_and_videos_as_one_for_each_row():
    image, video = torch.rand(3, 4, 5), torch.rand(2, 3, 4, 5)
    assert torch.equal(repeated("image", image, 2), torch.stack([image, image]))
    assert torch.equal(repeated("mask_image", image[None], 2), torch.stack([image, image]))
    assert torch.equal(repeated("video", video, 2), torch.stack([video, video]))
    assert repeated("image", ["a picture"], 3) == ["a picture"] * 3 == repeated("image", "a picture", 3)
    assert repeated("video", ["a frame", "another"], 2) == [["a frame", "another"]] * 2


def test_what_a_pipeline_refuses_is_one_line(videos):
    with pytest.raises(UserError, match=r"^LTXImageToVideoPipeline: refuses this call with image: RuntimeError: .*$"):
        made(videos, "a seven moving left", torch.rand(1, 3, 32, 32), "fk")  # its autoencoder takes grey ones


@pytest.mark.parametrize("way", ["noise_search", "reno"])
def test_first_latents_that_cannot_be_put_are_one_line(videos, way, monkeypatch):
    monkeypatch.setattr(Made, "place", lambda made, x: None)
    monkeypatch.setattr(Made, "larger", lambda made, x: [])
    line = "its first latents are made inside its call, so that no others can be put there"
    with pytest.raises(UserError, match=f"^LTXImageToVideoPipeline: {line}$"):
        made(videos, "a seven moving left", torch.rand(1, 1, 32, 32), way)


def test_a_pipeline_that_takes_one_row_at_a_time_says_so_and_what_does():
    pipe = pipelines.twin("DreamLitePipeline")
    pipe.set_progress_bar_config(disable=True)
    call = {**pipelines.call_arguments(pipe), "prompt": "a red fox", "num_inference_steps": 2, "output_type": "pt"}
    brightness = lambda outputs, prompts: outputs.flatten(1).mean(1)  # noqa: E731
    line = r"^DreamLitePipeline: takes image for one row at a time \(ValueError: .*\); best_of with rows_at_once=1 draws so$"
    with mm.guide(pipe, brightness, guidance="fk", particles=2), pytest.raises(UserError, match=line):
        pipe(**call)
    with mm.guide(pipe, brightness, guidance="best_of", count=2, rows_at_once=1):
        assert len(pipe(**call).images) == 1


# Columns of prompts


def nearest(outputs, prompts, *, target, **columns):
    assert len(outputs) == len(prompts) == len(target)
    return -(outputs.flatten(1).mean(1) - torch.tensor(target).to(outputs)).abs()


@pytest.mark.parametrize(
    ("guidance", "settings"), [("fk", {"particles": 3}), ("best_of", {"count": 4, "rows_at_once": 5}), ("dps", {"scale": 50.0})]
)
def test_a_reward_gets_the_columns_of_the_rows_that_it_scores(pipe, guidance, settings):
    """Two rewards of one call: dark images for the first prompt, bright ones for the second, whatever rows stand beside each other."""
    prompts = [Prompt(PROMPTS[1], {"target": 0.0}), Prompt(PROMPTS[1], {"target": 1.0})]
    with mm.guide(pipe, nearest, guidance=guidance, **settings) as guided:
        images = pipe(prompts, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="pt").images
    dark, bright = images.flatten(1).mean(1).tolist()
    assert dark < bright and guided.ledger.rewards > 0
    if guided.scores is not None:
        assert guided.scores.tolist() == pytest.approx([-dark, bright - 1], abs=1e-5)


def test_prompts_with_columns_go_where_no_reward_is(pipe):
    plain = pipe([PROMPTS[3]], generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="pt").images
    for guidance in ("rlg", "cfg"):
        settings = {"base": "current"} if guidance == "rlg" else {"scale": 1.0}
        with mm.guide(pipe, guidance=guidance, **settings):
            more = {} if guidance == "rlg" else {"guidance_scale": 3.0}
            rng = torch.Generator().manual_seed(0)
            images = pipe([Prompt(PROMPTS[3], {"a": 1})], generator=rng, num_inference_steps=3, output_type="pt", **more).images
        torch.testing.assert_close(images, plain, atol=1e-5, rtol=0)


def test_a_column_that_the_prompts_lack_is_refused_before_anything_is_drawn(pipe):
    reward = Scorer("answers", lambda outputs, prompts, **columns: outputs.flatten(1).mean(1), reads=frozenset({"answer"}))
    with mm.guide(pipe, reward, guidance="best_of") as guided:
        with pytest.raises(UserError, match=r"^reward reward: reads the column 'answer' of the prompts; they have none; .*mm.Prompt$"):
            pipe(PROMPTS[:2])
        with pytest.raises(UserError, match=r"^reward reward: reads the column 'answer' of the prompts; they have other$"):
            pipe([Prompt(PROMPTS[0], {"other": 1})])
    assert guided.ledger.evaluations == 0


def test_a_call_is_taken_apart(pipe):
    prompts = [Prompt("a one", {"n": 1}), "a two"]
    call = user_call(pipe, (), {"prompt": prompts, "num_images_per_prompt": 2})
    assert call.prompts == ["a one", "a one", "a two", "a two"] and call.columns == {"n": [1, 1, None, None]} and call.media == {}


# The bar and the callbacks


@pytest.mark.parametrize(
    ("guidance", "settings", "steps"),
    [
        ("universal", {}, 4), ("fk", {"particles": 2}, 4), ("mpgd", {}, 4), ("freedom", {"recurrences": 2}, 8),
        ("best_of", {"count": 4, "rows_at_once": 2}, 8), ("noise_search", {"count": 2, "rounds": 2}, 12), ("reno", {"iterations": 2}, 12),
    ],
)  # fmt: skip
def test_one_bar_and_one_callback_for_each_step_of_a_sample(pipe, guidance, settings, steps):
    """Decodes, measurements and rewards on the way are calls of the same pipeline, of which nobody hears."""
    written, heard = io.StringIO(), []
    pipe.set_progress_bar_config(disable=False, file=written, mininterval=0.0, leave=True)

    def callback(pipe, step, time, tensors):
        heard.append(float(time))
        return {}

    with mm.guide(pipe, lambda outputs, prompts: outputs.flatten(1).mean(1), guidance=guidance, **settings):
        pipe(PROMPTS[:1], generator=torch.Generator().manual_seed(0), num_inference_steps=4, callback_on_step_end=callback)
    assert len(heard) == steps
    lines = written.getvalue().split("\n")
    assert len(lines) == 2 and f" {steps}/{steps} " in lines[0].split("\r")[-1] and lines[1] == ""
    assert "progress_bar" not in vars(pipe)


def test_a_measured_rule_is_silent_too(pipe):
    written, heard = io.StringIO(), []
    pipe.set_progress_bar_config(disable=False, file=written, mininterval=0.0, leave=True)
    listen = lambda pipe, step, time, tensors: heard.append(step) or {}  # noqa: E731
    with mm.guide(pipe, guidance="apg"):
        pipe(PROMPTS[:1], num_inference_steps=3, guidance_scale=2.0, callback_on_step_end=listen)
    assert heard == [0, 1, 2] and written.getvalue().count("\n") == 1


def test_a_bar_that_is_off_stays_off_and_an_error_puts_it_back(pipe, capsys):
    def broken(outputs, prompts):
        raise ValueError("of the reward's own")

    with mm.guide(pipe, broken, guidance="fk"), pytest.raises(ValueError, match="of the reward's own"):
        pipe(PROMPTS[:1], num_inference_steps=3)
    assert "progress_bar" not in vars(pipe) and "it/s" not in capsys.readouterr().err


# What a reward says of its gradient


@pytest.mark.parametrize(
    ("says", "chosen"), [((True, True), "universal"), ((True, None), "fk"), ((None,), "fk"), ((False,), "fk"), ((True, False), "fk")]
)
def test_a_reward_that_does_not_say_is_not_chosen_for_its_gradient_and_may_be_asked_for_it(pipe, says, chosen):
    def reward(differentiable):
        score = lambda outputs, prompts: outputs.flatten(1).mean(1)  # noqa: E731
        return score if differentiable is None else Scorer("mean", lambda o, p, **c: score(o, p), differentiable=differentiable)

    rewards = {str(number): reward(word) for number, word in enumerate(says)}
    with mm.guide(pipe, rewards) as guided:
        assert guided.guidance.name == chosen
    if False in says:
        with pytest.raises(UserError, match="mean is not differentiable"), mm.guide(pipe, rewards, guidance="dps"):
            pass
    else:
        with mm.guide(pipe, rewards, guidance="dps") as guided:
            pipe(PROMPTS[:1], num_inference_steps=3)
        assert guided.ledger.reward_gradients > 0
