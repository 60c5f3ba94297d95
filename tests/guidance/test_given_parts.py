"""Guidance where the scheduler is shown a part of what the denoiser sees: the frames behind a picture that is given, arranged otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.guidance._run import Guidance
from mmalign.guidance.gradients import _along_x, shifted
from mmalign.guidance.guide import sampled
from mmalign.policies.twins import pipelines
from mmalign.types import Prediction

NAMES = ("LTXImageToVideoPipeline", "SanaImageToVideoPipeline")


def bright(outputs, prompts):
    return (outputs.double() - 0.3).square().flatten(1).sum(1)


def made(name, guidance, *, reward=bright, pipe=None, **call):
    """What a guided call of two steps makes, and the guidance's trace."""
    pipe = pipelines.twin(name) if pipe is None else pipe
    call = {**pipelines.call_arguments(pipe), "num_inference_steps": 2, "output_type": "pt", "prompt": "a fox", **call}
    with mm.guide(pipe, reward, guidance=guidance) as guided:
        frames = pipe(generator=torch.Generator().manual_seed(0), **call).frames
    return frames, guided


@pytest.mark.parametrize(("name", "size"), zip(NAMES, (2e-2, 1e-5), strict=True))  # nearly all pixels of Sana's twin are black or white
def test_the_gradient_along_the_latent_goes_through_the_denoiser(name, size):
    """Against two calls in which the first step's outcome is moved up and down."""
    pipe, found = pipelines.twin(name), {}

    def along(move):
        def change(run, moment, rows):
            if moment.column == 0:
                found["signal"] = float(moment.t_next.signal)
                assert float(moment.t.signal) == 0  # so the move of the clean estimate is one of the outcome, times that
                return moment.prediction if move is None else shifted(moment, move / found["signal"])
            found["value"] = float(run.score_latents(moment.prediction.clean, rows).detach())
            if move is None:
                found["gradient"] = _along_x(run, moment, rows, 1.0, 1, 0.0)
            return moment.prediction

        made(name, Guidance("along", frozenset({"reward", "gradient", "denoiser"}), change=change), pipe=pipe)
        return found["value"]

    along(None)
    gradient = found["gradient"]
    way = size * gradient / gradient.square().mean().sqrt()
    assert (along(way) - along(-way)) / 2 == pytest.approx(float((gradient * way).sum()), rel=0.02)


def test_the_negative_branch_is_found_among_the_outputs_in_their_own_order():
    """CFG++ puts back the noise of the negative prompt: that of a call which asks about this prompt alone."""
    name, seen = "LTXImageToVideoPipeline", []
    own = mm.guidance.cfg_plus_plus(scale=0.6)

    def noted(noise_of):
        def change(run, moment, rows):
            if moment.column == 0:  # of noise alone, which is the noise whatever is predicted; both go on from one place
                return Prediction(torch.zeros_like(moment.x), moment.x / moment.t.noise)
            seen.append(noise_of(run, moment, rows))
            return moment.prediction

        return change

    pipe = pipelines.twin(name)
    made(
        name,
        replace(own, change=noted(lambda *step: own.change(*step).noise)),
        reward=None,
        pipe=pipe,
        negative_prompt="a cat",
        guidance_scale=5.0,
    )
    made(
        name,
        Guidance("look", change=noted(lambda run, moment, rows: moment.prediction.noise)),
        reward=None,
        pipe=pipe,
        prompt="a cat",
        guidance_scale=1.0,
    )
    torch.testing.assert_close(*seen, rtol=0, atol=1e-5 * float(seen[1].abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_put_where_the_part_lies(name):
    """The first sample of a search is the pipeline's own; a move up the gradient is a better one."""
    pipe = pipelines.twin(name)
    _, plain = made(name, Guidance("plain", search=lambda run: sampled(run, run.seeds(1))), pipe=pipe)
    _, guided = made(name, mm.guidance.reno(iterations=1, rate=0.02), pipe=pipe)
    first, second = (float(one["scores"]) for one in guided.trace)
    assert first == pytest.approx(float(plain.scores), rel=1e-4) and second > first
