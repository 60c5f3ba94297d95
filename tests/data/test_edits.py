"""Source images of editing models: found by prompt, in the size asked for, with mistakes told before anything runs."""

from __future__ import annotations

import json

import pytest

from mmalign.data.edits import source_images
from mmalign.policies.settings import Schedule
from mmalign.rooms import resource
from mmalign.types import UserError, contents


@pytest.fixture
def write(tmp_path):
    from PIL import Image

    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "blue.png")
    (tmp_path / "text.png").write_text("no image")

    def written(*rows) -> str:
        file = tmp_path / "edits.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(file)

    return written


def test_every_prompt_gets_its_own_image(write):
    path = write({"prompt": "a", "image": "red.png"}, "", {"prompt": "b", "image": "blue.png"})
    pictures = source_images(path)(["b", "a", "b"])["image"]
    assert [picture.getpixel((0, 0)) for picture in pictures] == [(0, 0, 255), (255, 0, 0), (0, 0, 255)]
    assert {picture.size for picture in pictures} == {(30, 20)}
    assert source_images(path, size=[8, 16])(["a"])["image"][0].size == (16, 8)


def test_columns_may_have_other_names(write):
    path = write({"instruction": "a", "source": "red.png"})
    assert source_images(path, key="instruction", column="source", size=8)(["a"])["image"][0].size == (8, 8)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["{"], "line 1: not JSON"),
        ([{"prompt": "a"}], "line 1: takes an object with strings under 'prompt' and 'image'"),
        ([{"prompt": "a", "image": "red.png"}, {"prompt": "a", "image": "blue.png"}], "line 2: 'a' has another image already"),
        ([{"prompt": "a", "image": "green.png"}], "line 1: no such file"),
        ([""], "got no lines"),
    ],
)
def test_mistakes_name_the_line(write, rows, says):
    with pytest.raises(UserError, match=says):
        source_images(write(*rows))


def test_mistakes_when_asked(write):
    conditions = source_images(write({"prompt": "a", "image": "text.png"}))
    with pytest.raises(UserError, match="no image for 'c'"):
        conditions(["c"])
    with pytest.raises(UserError, match=r"text\.png: no image that can be read"):
        conditions(["a"])
    with pytest.raises(UserError, match=r"conditions\.path: no such file"):
        source_images("nothing.jsonl")
    with pytest.raises(UserError, match=r"conditions\.size"):
        source_images(write({"prompt": "a", "image": "red.png"}), size=0)


def test_the_examples_that_come_with_it():
    from mmalign.data import pairs, prompts

    path = str(resource("assets/edits/edits.jsonl"))
    questions = contents(prompts(path))
    assert len(source_images(path, size=64)(questions)["image"]) == len(questions) == 6
    assert [pair.prompt for pair in pairs(str(resource("assets/edits/pairs.jsonl"))).first(9)] == questions


def test_an_editing_model_sees_the_image_of_each_prompt_at_every_turn():
    """A rollout, its replay, and denoising errors of given edits, on a tiny FLUX Kontext."""
    import torch

    import mmalign as mm
    from mmalign.policies.twins import pipelines

    path = str(resource("assets/edits/edits.jsonl"))
    questions = contents(mm.data.prompts(path, limit=2))
    call = {"height": 32, "width": 32, "max_area": 32 * 32, "_auto_resize": False}
    policy = mm.policies.diffusers(
        pipelines.twin("FluxKontextPipeline"), device="cpu", call=call, conditions=source_images(path, size=32), schedule=Schedule(steps=2)
    )
    outputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    edits = mm.policies.forward(policy).encode(questions, outputs, torch.arange(2), torch.Generator().manual_seed(0))
    bounds = mm.policies.forward(policy).steps(edits, torch.arange(2)).log_probs
    assert bool(bounds.isfinite().all())
    rollout = policy.sample(questions, 2, torch.Generator().manual_seed(0))
    assert torch.equal(policy.steps(rollout, torch.arange(4)).log_probs, rollout.log_probs[:, :1])
    blank = mm.policies.diffusers(
        policy.pipe, device="cpu", call=call, conditions=lambda p: {"image": [_white()] * len(p)}, schedule=Schedule(steps=2)
    )
    assert not torch.allclose(mm.policies.forward(blank).steps(edits, torch.arange(2)).log_probs, bounds)


def _white():
    from PIL import Image

    return Image.new("RGB", (32, 32), "white")
