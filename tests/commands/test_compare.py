"""Guidance against best-of-N: the arithmetic of equal cost, what is written, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

import mmalign as mm
from mmalign.commands._models import guidance_of, model_of
from mmalign.commands.compare import _at, _best_of_each, compare
from mmalign.commands.sample import guided_sample
from mmalign.types import Prompt, UserError
from mmalign.worlds.digits.base import digits
from mmalign.worlds.digits.data import PROMPTS
from mmalign.worlds.moving_digits.data import moving_digits_stills


def brightness(outputs, prompts, **columns):
    return outputs.flatten(1).mean(1)


def test_best_of_n_is_over_blocks_and_by_the_reward_alone():
    scores = torch.tensor([[1.0], [3.0], [2.0], [float("nan")]], dtype=torch.float64)
    judged = torch.tensor([[10.0], [30.0], [20.0], [40.0]], dtype=torch.float64)
    rewards, gold = _best_of_each(scores, judged)
    assert gold.tolist() == [25.0, 25.0, 30.0, 30.0]
    assert rewards[1:].tolist() == [2.5, 3.0, 3.0]
    curve = torch.tensor([[1.0, 2.0, 4.0]])
    assert [float(_at(curve, n)) for n in (0.5, 1.0, 1.5, 2.5, 3.0)] == [1.0, 1.0, 1.5, 3.0, 4.0]
    assert bool(_at(curve, 3.5).isnan())


def test_a_comparison_is_a_table_numbers_and_a_picture(tmp_path):
    arguments = {
        "guidance": ["dps scale=50", "fk particles=2"],
        "prompts": PROMPTS[:2],
        "samples": 2,
        "seeds": 2,
        "call": {"num_inference_steps": 4},
    }
    made = compare(digits(), brightness, out=tmp_path, **arguments)
    dps, fk = made.rows
    assert dps.cost == pytest.approx(5 + 2 * 3) and fk.ledger["evaluations"] == pytest.approx(2 * 5)  # one each for a shape
    assert dps.reward == dps.judge and dps.lead == pytest.approx(dps.judge - dps.best_judge)
    assert dps.reward > made.curve[0][1]
    assert (
        replace(dps, lead=0.3, lead_error=0.1).verdict == "beats it" and replace(dps, lead=0.1, lead_error=0.1).verdict == "no difference"
    )
    assert replace(dps, lead=float("nan")).verdict == "not known"
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["verdicts"]["dps scale=50"] == dps.verdict and len(written["curve"]) == 3
    assert (tmp_path / "comparison.md").read_text() == made.table() and "| best of 2 |" in made.table()
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_any_model_is_sampled_under_guidance(tmp_path):
    made = guided_sample(
        "digits", reward=brightness, guidance="best_of count=2", prompts=PROMPTS[:2], count=2, call={"num_inference_steps": 3},
        out=tmp_path / "made.png",
    )  # fmt: skip
    assert made.path.is_file() and made.scores.shape == (2, 2) and made.ledger.evaluations == 2 * 2 * 2 * 3 and not made.parts
    model = model_of("digits/demo")
    assert set(model.rewards) == {"proxy", "novelty"} and model.weights["novelty"] == 2.15 and model.judges.keys() == {"gold"}
    assert model.call["num_inference_steps"] == 20 and len(model.prompts) == 10


@pytest.mark.parametrize(("guidance", "chosen"), [("best_of count=2", True), ("dps scale=1", False)])
def test_of_several_rewards_each_is_told(tmp_path, guidance, chosen):
    def target(outputs, prompts, *, target):
        return (brightness(outputs, prompts) - torch.tensor(target).to(outputs)) ** 2

    prompts = [Prompt(PROMPTS[0], {"target": 0.0}), Prompt(PROMPTS[1], {"target": 1.0})]
    made = guided_sample(
        "digits", reward={"ink": brightness, "off": target}, guidance=guidance, prompts=prompts, count=2, call={"num_inference_steps": 3},
        out=tmp_path / "made.png", rows_at_once=3,
    )  # fmt: skip
    ink = made.parts["ink"]
    assert made.parts.keys() == {"ink", "off"} and ink.shape == (2, 2)
    torch.testing.assert_close(made.parts["off"], (ink - torch.tensor([[0.0], [1.0]], dtype=torch.float64)) ** 2, rtol=1e-5, atol=1e-6)
    assert (made.scores is not None) == chosen
    if chosen:
        torch.testing.assert_close(made.scores, ink + made.parts["off"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance", [None, "fk particles=2", "best_of count=2"])
def test_a_world_that_begins_with_a_still_is_sampled(tmp_path, guidance):
    """Its call says sizes and stills by prompt; the pipeline's first argument is a picture, and not the prompt."""
    reward = None if guidance is None else mm.worlds.moving_digits_proxy()
    prompts = ["a seven moving left", "a two moving up #b3"]
    made = guided_sample(
        "moving_digits", reward=reward, guidance=guidance, prompts=prompts, count=2, call={"num_inference_steps": 4},
        out=tmp_path / "made.png", rows_at_once=3,
    )  # fmt: skip
    with Image.open(made.path) as picture:
        assert picture.n_frames == 4
        first = torch.from_numpy(numpy.asarray(picture.convert("L"))).float() / 255
    stills = moving_digits_stills()(prompts)["image"][:, 0]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = first[33 * row : 33 * row + 32, 33 * column : 33 * column + 32]
        torch.testing.assert_close(cell, stills[row], atol=0.02, rtol=0)
    assert made.scores is None if guidance is None else made.scores.shape == (2, 2)


def test_a_config_s_rewards_get_the_columns_of_its_prompts(tmp_path):
    """Dark images for the first prompt, bright ones for the second, in ``sample`` and in ``compare``."""

    def nearest(outputs, prompts, *, target):
        assert len(outputs) == len(prompts) == len(target)
        return -(brightness(outputs, prompts) - torch.tensor(target).to(outputs)).abs()

    prompts = [Prompt(PROMPTS[1], {"target": 0.0}), Prompt(PROMPTS[1], {"target": 1.0})]
    model = model_of("digits")._replace(prompts=prompts, rewards={"near": nearest})
    made = guided_sample(
        model, guidance="best_of count=3", count=3, call={"num_inference_steps": 3}, out=tmp_path / "a.png", rows_at_once=4
    )
    assert made.scores is not None and bool((made.scores[0] > made.scores[1]).all())  # ink is less than half of an image
    settings = {"guidance": ["fk particles=2"], "samples": 2, "seeds": 2, "call": {"num_inference_steps": 3}, "rows_at_once": 3}
    compared = compare(model.pipe, nearest, prompts=prompts, judge=nearest, **settings)
    assert compared.rows[0].reward == compared.rows[0].judge < 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: guidance_of("dsp"), "nearest: dps"),
        (lambda: guidance_of("dps 5"), "--guidance dps 5: takes KEY=VALUE"),
        (lambda: guidance_of("dps weight=5"), "weight"),
        (lambda: guided_sample("digits", guidance="dps"), "got 0 prompts"),
        (lambda: guided_sample("digits", guidance="dps", prompts=PROMPTS[:1]), "takes a reward, got none"),
        (lambda: compare(digits(), brightness, guidance=["dps"], prompts=[]), "takes 1, 2, 1 and 1 or more"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
