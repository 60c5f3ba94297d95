"""The world of moving digits: its videos, its written autoencoder, its judges and what they cannot see, its base and its config."""

from __future__ import annotations

import functools
import json

import pytest
import torch

import mmalign as mm
from mmalign.config import build, load
from mmalign.rooms import resource
from mmalign.types import UserError
from mmalign.worlds.digits.data import real
from mmalign.worlds.moving_digits import base, data, judges, vae


@functools.cache
def clips(half):
    prompts = data.moving_digits_prompts(half=half, each=40)
    return data.real_videos(prompts), prompts


def scores(outputs, prompts):
    named = {"proxy": judges.moving_digits_proxy(), "gold": judges.moving_digits_gold(), "identity": judges.moving_digits_identity()}
    return {name: float(judge(outputs, prompts).mean()) for name, judge in named.items()}


def test_a_video_is_a_scan_that_leaves_the_canvas():
    videos = data.real_videos([f"a 3 moving {name} #b7" for name in data.NAMES])
    images, labels = real("B")
    scan = images[labels == 3][7, 0]
    canvases = data.reduced(videos)
    assert videos.shape == (4, 4, 1, 32, 32)
    torch.testing.assert_close(data.enlarged(canvases)[:, :, None], videos)
    assert torch.equal(canvases[:, 0, 4:12, 4:12], scan.expand(4, 8, 8)) and float(canvases[:, 0].sum()) == pytest.approx(
        4 * float(scan.sum())
    )
    second = canvases[0, 1, 4:12, :8], canvases[1, 1, 4:12, 8:], canvases[2, 1, :8, 4:12], canvases[3, 1, 8:, 4:12]
    assert all(torch.equal(place, scan) for place in second)  # left, right, up, down: at the edge
    third = canvases[0, 2, 4:12, :4], canvases[1, 2, 4:12, 12:], canvases[2, 2, :4, 4:12], canvases[3, 2, 12:, 4:12]
    halves = scan[:, 4:], scan[:, :4], scan[4:], scan[:4]
    assert all(torch.equal(place, half) for place, half in zip(third, halves, strict=True))
    assert torch.equal(canvases[:, 3], torch.zeros(4, 16, 16))


def test_prompts_take_turns_and_each_has_its_own_still():
    prompts = data.moving_digits_prompts(half="b", each=2)
    assert prompts[:2] == ["a zero moving left #b0", "a one moving right #b0"] and prompts[10] == "a zero moving right #b1"
    digits, directions = data.targets(data.moving_digits_prompts(each=4))
    assert digits.bincount().tolist() == [4] * 10 and directions.bincount().tolist() == [10] * 4
    assert len({frame.numpy().tobytes() for frame in data.first_frames(data.moving_digits_prompts(each=80))}) == 800
    image = data.moving_digits_stills()(prompts)["image"]
    torch.testing.assert_close(data.reduced(image[:, None])[:, 0], data.first_frames(prompts))
    assert torch.equal(data.first_frames(["a 7 moving up"]), data.first_frames(["a seven moving up #A0"]))


def test_stills_for_evaluation_are_of_the_half_that_the_base_never_saw():
    seen = real("A")[0].flatten(1)
    stills = data.first_frames(data.moving_digits_prompts(half="b", each=10))[:, 4:12, 4:12].flatten(1)
    assert float(torch.cdist(stills, seen).min()) > 0
    config = load("moving_digits/flow_grpo")
    assert config["prompts"]["half"] == "a" and config["evaluation"]["prompts"]["half"] == "b"


@pytest.mark.parametrize(("prompt", "wish"), [("a seven moving left #b4", (7, 0)), ("A 3 moves DOWN!", (3, 3))])
def test_prompts_name_a_digit_and_a_direction(prompt, wish):
    assert data.parsed(prompt) == wish


@pytest.mark.parametrize("prompt", ["", "a seven", "moving left", "a seven moving left and right", "a 17 moving up"])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(UserError, match="takes one digit"):
        data.parsed(prompt)


def test_mistakes_are_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="takes #b0 to #b"):
        data.first_frames(["a 1 moving up #b99"])
    with pytest.raises(UserError, match="each=81"):
        data.moving_digits_prompts(each=81)
    with pytest.raises(UserError, match="make_assets"):
        base.moving_digits(path=str(tmp_path))


def test_the_autoencoder_is_exact_in_single_and_after_half_precision():
    own = vae.written_vae()
    video = clips("b")[0][:64].transpose(1, 2) * 2 - 1
    latent = own.encode(video).latent_dist
    assert latent.mean.shape == (64, 16, 4, 4, 4) and float(latent.std.max()) < 1e-4
    canvas = data.reduced(clips("b")[0][:64])  # channel 4 * (column of a patch) + row
    torch.testing.assert_close(latent.mean[:, 4 * 2 + 1, :, 2, 1], canvas[:, :, 4 * 2 + 1, 4 * 1 + 2] * 2 - 1, atol=1e-5, rtol=0)
    for model in (own, vae.written_vae().half().float()):
        assert float((model.decode(latent.mode()).sample - video).abs().max()) < 1e-5


def test_judges_are_right_on_real_videos():
    rng = torch.Generator().manual_seed(0)
    for half, least in (("a", 0.98), ("b", 0.99)):
        videos, prompts = clips(half)
        means = scores(videos, prompts)
        assert means["gold"] == 1 and means["identity"] > least and means["proxy"] > 0.94
        noisy = scores((videos + 0.15 * torch.randn(videos.shape, generator=rng)).clamp(0, 1), prompts)
        assert noisy["gold"] > 0.99 and noisy["identity"] > 0.97 and noisy["proxy"] > 0.9
        assert judges.moving_digits_error()(videos, prompts)["error"] == 0


def test_judges_see_what_they_are_for():
    videos, prompts = clips("a")
    other = data.videos(data.first_frames(prompts), (data.targets(prompts)[1] + 1) % 4)
    assert scores(other, prompts) == {"proxy": pytest.approx(0, abs=0.02), "gold": 0, "identity": scores(videos, prompts)["identity"]}
    still = scores(videos[:, :1].expand_as(videos), prompts)
    assert still["gold"] == 0 and still["proxy"] == pytest.approx(0.2, abs=0.01)
    digits = scores(videos, [*prompts[1:], prompts[0]])
    assert digits["identity"] < 0.05
    dark = scores(torch.zeros_like(videos), prompts)
    assert dark["proxy"] == 0 and judges.wrong(torch.zeros(1, 4, 16, 16), torch.zeros(1, dtype=torch.int64)) == 0


def test_gold_refuses_a_digit_that_goes_both_ways_or_stays_in_part():
    videos, prompts = clips("a")
    directions = data.targets(prompts)[1]
    back = data.videos(data.first_frames(prompts), directions ^ 1)  # left and right, up and down
    assert scores(torch.maximum(videos, back), prompts)["gold"] == 0
    assert scores(torch.maximum(videos, videos[:, :1]), prompts)["gold"] == 0
    errors = judges.wrong(data.reduced(torch.maximum(videos, back)), directions)
    right, other = (data.reduced(clip)[:, 1:].square().sum((1, 2, 3)) for clip in (videos, back))  # they share no pixel
    torch.testing.assert_close(errors, other / (2 * right + other))


def test_what_each_judge_cannot_see():
    """The proxy takes any bright thing, and no notice of what comes after the second frame; gold and identity do not follow it."""
    videos, prompts = clips("a")
    directions = data.targets(prompts)[1]
    square = data.videos(data.stills(torch.full((len(prompts), 1, 8, 8), 0.7)), directions)
    square[:, 0] = videos[:, 0]
    means = scores(square, prompts)
    assert means["proxy"] > 0.9 and means["gold"] < 0.4 and means["identity"] < 0.15
    stuck = videos.clone()
    stuck[:, 2:] = stuck[:, 1:2]
    assert scores(stuck, prompts)["proxy"] == scores(videos, prompts)["proxy"] and scores(stuck, prompts)["gold"] == 0


def test_identity_reads_unseen_scans_only():
    """Its classifier was fitted to half B, so on stills of half A it has to generalise, and the base's training never met it."""
    for half in "ab":
        canvases = data.reduced(clips(half)[0])
        images = judges.pictures(canvases[:, 1])
        torch.testing.assert_close(images, canvases[:, 0, 4:12, 4:12])


def test_proxy_is_differentiable_and_judges_refuse_other_shapes():
    videos = clips("a")[0][:8].clone().requires_grad_()
    judges.moving_digits_proxy()(videos, clips("a")[1][:8]).sum().backward()
    assert videos.grad is not None and bool(videos.grad.isfinite().all()) and float(videos.grad.abs().max()) > 0
    for name in judges.__all__:
        with pytest.raises(UserError, match="takes videos"):
            getattr(judges, name)()(torch.rand(2, 1, 32, 32), ["a 1 moving up"] * 2)


def test_the_base_is_a_stock_pipeline_with_headroom():
    """Nothing of ours is in its folder, and no pickle; it animates a still, but too rarely the way it is asked to."""
    from diffusers import DiffusionPipeline, LTXImageToVideoPipeline, LTXVideoTransformer3DModel

    folder = resource("assets/moving_digits/ltx")
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_000_000 and {file.suffix for file in files} <= {".json", ".safetensors"}
    assert "mmalign" not in (folder / "model_index.json").read_text()
    pipe = mm.worlds.moving_digits()
    assert type(pipe) is LTXImageToVideoPipeline and type(pipe.transformer) is LTXVideoTransformer3DModel
    prompts = data.moving_digits_prompts(half="b", each=10)

    def draw(pipeline, prompts):
        seeded = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
        call = {**base.CALL, **data.moving_digits_stills()(prompts), "guidance_scale": 1.0, "num_inference_steps": 10}
        return pipeline(prompt=prompts, generator=seeded, output_type="pt", **call).frames

    videos = draw(pipe, prompts)
    means = scores(videos, prompts)
    assert 0.4 < means["gold"] < 0.7 and 0.4 < means["identity"] < 0.8
    torch.testing.assert_close(data.reduced(videos)[:, 0], data.first_frames(prompts), atol=1e-3, rtol=0)
    again = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, prompts[:4]), draw(pipe, prompts[:4]))


def test_training_a_base_learns():
    """The loss of a short training is below that of predicting the mean velocity, and the same seed gives the same weights."""
    first, second = (base.train_base(iterations=30, batch_size=16, ema_decay=0.8, seed=3) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first.transformer.parameters(), second.transformer.parameters(), strict=True))
    videos, prompts = clips("a")
    clean = base.latents(first, videos[:100])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    spoken = first.tokenizer(prompts[:100], padding="max_length", max_length=base.TOKENS, return_tensors="pt")
    with torch.no_grad():
        velocity = base.predicted(first, clean, noise, torch.full((100,), 0.5), spoken.input_ids, spoken.attention_mask)
    target = (noise - clean)[:, 16:]
    assert float((velocity[:, 16:] - target).square().mean()) < 0.8 * float(target.var())


def test_training_asks_the_transformer_as_the_pipeline_does():
    """What the base is trained on is what the pipeline asks of it: the same tokens, mask, times of tokens, positions and packing."""
    pipe, calls = base.untrained(), []
    own = pipe.transformer.forward
    pipe.transformer.forward = lambda **inputs: calls.append(inputs) or own(**inputs)
    prompts = ["a seven moving left #a1", "a 3 moving up #a2"]
    seeded = [torch.Generator().manual_seed(number) for number in range(2)]
    call = {**base.CALL, **data.moving_digits_stills()(prompts), "guidance_scale": 1.0, "num_inference_steps": 1}
    pipe(prompt=prompts, generator=seeded, output_type="latent", **call)
    tokens = pipe.tokenizer(prompts, padding="max_length", max_length=base.TOKENS, return_tensors="pt")
    clean = base.latents(pipe, data.real_videos(prompts))
    with torch.no_grad():
        base.predicted(pipe, clean, calls[0]["hidden_states"], torch.ones(2), tokens.input_ids, tokens.attention_mask)
    drawn, trained = calls
    for name in ("encoder_hidden_states", "encoder_attention_mask", "timestep"):
        assert torch.equal(drawn[name], trained[name]), name
    torch.testing.assert_close(drawn["hidden_states"], trained["hidden_states"], atol=1e-3, rtol=0)  # the first frame is encoded at random
    assert all(drawn[name] == trained[name] for name in ("num_frames", "height", "width", "rope_interpolation_scale"))
    video = pipe.vae.decode(pipe._unpack_latents(clean, 4, 4, 4, 1, 1)).sample.transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(video, data.real_videos(prompts), atol=1e-5, rtol=0)


def test_numerals_are_read_as_words_and_the_number_of_a_still_is_not_read():
    words = base.tokenizer()
    assert words("a 7 moving left #b12").input_ids == words("a seven moving left").input_ids
    assert words.convert_ids_to_tokens(words("a Seven moving left #a0").input_ids) == ["a", "seven", "moving", "left", "</s>"]
    assert words("").input_ids == [1]


SMALL = [
    "batch.prompts=4", "batch.group=4", "evaluation.samples=2", "evaluation.columns=2", "evaluation.every=1",
    "evaluation.prompts.each=1", "evaluation.call.num_inference_steps=2", "run.trackers=[]", "run.checkpoint_every=1",
]  # fmt: skip


def started(overrides, **more):
    node = load("moving_digits/flow_grpo", overrides)
    return build(node, **more)


def test_steps_of_the_config(tmp_path):
    """The shipped config, smaller: exact replay, resumed as if never interrupted, videos among the samples, an export that loads."""
    from PIL import Image

    small = [f"run.folder={tmp_path}", *SMALL]
    run = started([*small, "steps=2"])
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert run.summary["preflight_difference"] == 0.0
    assert [row["step"] for row in rows if row["phase"] == "eval"] == [0, 1, 2]
    assert rows[-1].keys() >= {"proxy", "gold", "identity", "error"}
    started([*small, "steps=1", "run.name=cut"])
    again = started([*small, "steps=2", "run.name=cut"], resume=True)
    assert again.summary["gold_after"] == run.summary["gold_after"] and again.summary["proxy_after"] == run.summary["proxy_after"]
    assert all(torch.equal(p, again.policy.parameters()[name]) for name, p in run.policy.parameters().items())
    for file in (*run.path.glob("samples/*.png"), mm.commands.sample(run.path, prompts=["a 7 moving left #b3"], count=2)):
        with Image.open(file) as shown:
            assert shown.n_frames == 4, file
    assert len(list(run.path.glob("samples/step_*.png"))) == 3


def test_loading_shows_no_bar_and_leaves_others_theirs(capfd):
    from transformers.utils import logging

    base.moving_digits()
    assert "Loading" not in capfd.readouterr().err and logging.is_progress_bar_enabled()
