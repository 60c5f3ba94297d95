"""Twins of many families, without a network: recorded and replayed to the last bit, with a gradient; and the mechanisms behind it."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
import torch

from mmalign.policies.pipelines.calls.encoded_once import encoded_once
from mmalign.policies.pipelines.calls.interception import skipped
from mmalign.policies.pipelines.loading import unfit
from mmalign.policies.settings import Memory, Schedule
from mmalign.policies.twins import pipeline_facts, pipelines
from mmalign.types import Prediction, UserError
from tests.helpers.flat import diffusers

TABLE = {row["name"]: row for row in json.loads((Path(pipelines.__file__).parents[1] / "pipelines" / "conformance.json").read_text())}
EXACT = sorted(name for name, row in TABLE.items() if row.get("replay") == 0.0)
FAMILIES = [name for name in EXACT if TABLE[name]["seconds"] < 0.7]  # the others are checked by scripts/conformance.py alone


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_replays_to_the_last_bit_and_has_a_gradient(name):
    policy = policy_of(name)
    rollout = sample(policy, pipeline_facts.PROMPTS.get(name, ("a red fox", "two blue birds")))
    column = torch.nonzero(rollout.held.random).flatten()[-1:]
    steps = policy.steps(rollout, torch.arange(2), columns=column)
    assert float((steps.log_probs.detach() - steps.old).abs().max()) == 0.0
    steps.log_probs.sum().backward()
    assert max(float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None) > 0


def policy_of(name, steps=3, **more):
    pipe = pipelines.twin(name)
    return diffusers(
        pipe,
        call={**pipelines.call_arguments(pipe), **more},
        device="cpu",
        schedule=Schedule(steps=steps),
        memory=Memory(rows_at_once=TABLE.get(name, {}).get("rows", 2)),
    )


def sample(policy, prompts=("a red fox", "two blue birds")):
    return policy.sample(list(prompts), 1, torch.Generator().manual_seed(0))


def difference(policy, rollout):
    steps = policy.steps(rollout, torch.arange(len(rollout.prompts)))
    return float((steps.log_probs.detach() - steps.old).abs().max())


def test_the_table_names_a_reason_for_whatever_is_not_exact():
    assert len(EXACT) >= 150 and len(FAMILIES) >= 60
    for name, row in TABLE.items():
        assert row.get("replay") == 0.0 or row.get("unfit") or row.get("error") or row["replay"] > 0, name


def test_both_denoisers_of_wan_are_trained_under_their_names():
    policy = policy_of("WanPipeline", steps=4)
    assert {name.split(".")[0] for name in policy.parameters()} == {"transformer", "transformer_2"}
    rollout = sample(policy)
    policy.steps(rollout, torch.arange(2)).log_probs.sum().backward()
    touched = {name.split(".")[0] for name, p in policy.parameters().items() if p.grad is not None and float(p.grad.norm()) > 0}
    assert touched == {"transformer", "transformer_2"}


def test_a_schedule_that_starts_late_has_fewer_steps():
    policy = policy_of("StableDiffusionImg2ImgPipeline", steps=4, strength=0.5)
    rollout = sample(policy)
    assert rollout.log_probs.shape == (2, 2)
    assert difference(policy, rollout) == 0.0
    times, levels = policy.schedule()
    assert len(times) == 2 and len(levels.noise) == 3


def test_masks_and_noise_inside_the_call_come_again_for_some_rows():
    policy = policy_of("StableDiffusionInpaintPipeline", steps=4)
    rollout = sample(policy, ("a", "b", "c"))
    assert difference(policy, rollout) == 0.0
    steps = policy.steps(rollout, torch.tensor([2, 0]))  # other rows, so that convolutions round in another way
    assert float((steps.log_probs.detach() - steps.old).abs().max()) < 0.1


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxFillPipeline",
        "CogVideoXVideoToVideoPipeline",
        "WanVideoToVideoPipeline",
    ],
)
def test_randomness_inside_the_call_is_the_rollouts_own(name):
    """Whatever was drawn in between, a replay comes by the same latents in all of its steps; other seeds give others."""
    policy = policy_of(name, steps=4)
    rollout = sample(policy)
    torch.manual_seed(123)
    policy.sample(["a red fox"], 1, torch.Generator().manual_seed(9))  # something else, in between
    assert difference(policy, rollout) == 0.0
    others = policy.sample(["a red fox", "two blue birds"], 1, torch.Generator().manual_seed(1))
    assert not torch.isclose(others.held.x[0], rollout.held.x[0]).all()


def test_a_pipeline_that_writes_into_its_latents_spoils_no_record():
    policy = policy_of("Kandinsky5T2VPipeline")
    assert difference(policy, sample(policy)) == 0.0


def test_the_sound_beside_a_video_is_repeated():
    policy = policy_of("LTX2Pipeline")
    rollout = sample(policy)
    assert len(rollout.held.beside) == 3
    assert difference(policy, rollout) == 0.0


def test_steps_that_are_over_do_not_run_the_denoiser():
    policy = policy_of("StableDiffusion3Pipeline", steps=4)
    rollout = sample(policy)
    policy.steps(rollout, torch.arange(2), columns=torch.tensor([2]))  # learns the shape
    calls = []
    policy.denoiser.register_forward_hook(lambda *_: calls.append(1))
    policy.steps(rollout, torch.arange(2), columns=torch.tensor([2]))
    assert len(calls) == 1


def test_skipped_modules_come_back():
    module = torch.nn.Linear(2, 2)
    over, x = True, torch.ones(1, 3, 2)
    with pytest.raises(RuntimeError), skipped({"m": module}, lambda: over, 1, {}):
        module(x)
        assert float(module(x).abs().max()) == 0
        raise RuntimeError
    assert float(module(x).detach().abs().max()) > 0


class Encoder:
    def __init__(self, split: bool = True):
        self.asked, self.split = [], split

    def encode_prompt(self, prompt, device=None, negative_prompt=None):
        self.asked.append(list(prompt))
        width = max(len(p) for p in prompt)
        predicted = torch.tensor([[ord(c) for c in p.ljust(width)] for p in prompt])
        prompt[0] = "changed"  # some pipelines write their template into the list they were given
        return (predicted, None) if self.split else (torch.cat([predicted, predicted]), None)


def test_prompts_are_encoded_once_and_padded_alike_in_every_call():
    pipe, memory = Encoder(), {}
    with encoded_once(pipe, ["a", "long"], memory):
        whole = pipe.encode_prompt(["a", "a", "long"])[0]
        part = pipe.encode_prompt(prompt=["a"])[0]
    assert pipe.asked == [["a", "long"]]
    assert torch.equal(whole[0], part[0]) and whole.shape == (3, 4)


def test_an_encoder_without_one_output_for_each_prompt_is_asked_as_it_is():
    pipe = Encoder(split=False)
    with encoded_once(pipe, ["a", "b"], {}):
        assert pipe.encode_prompt(["a"])[0].shape == (2, 1)
    assert pipe.asked == [["a", "b"], ["a"]]


def test_what_is_no_policy_says_why():
    assert unfit.reason("StableDiffusionPipeline") is None
    with pytest.raises(UserError, match="discrete tokens"):
        diffusers(_Named("AmusedPipeline"))
    with pytest.raises(UserError, match="no pipeline class"):
        pipelines.twin("StableConfusionPipeline")


def test_each_line_of_the_table_of_exceptions_names_a_pipeline():
    import diffusers

    for pattern in [*unfit.UNFIT, *unfit.NO_TWIN, *unfit.ANOTHER_DRAW]:
        assert [name for name in dir(diffusers) if fnmatch.fnmatchcase(name, pattern)], pattern
    assert not [name for name in EXACT if unfit.reason(name) or unfit.without_twin(name)]


def _Named(name):
    return type(
        name, (), {"to": lambda *_: None, "set_progress_bar_config": lambda *_, **__: None, "components": {}, "dtype": torch.float32}
    )()


def test_a_probe_of_the_wrong_shape_is_refused():
    policy = policy_of("FluxPipeline")
    rollout = sample(policy)
    times, levels = policy.schedule()
    with pytest.raises(UserError, match="latents: got shape"):
        policy.probe(rollout.prompts, rollout.held.x[0][:, :3], times[[0, 0]], type(levels)(levels.signal[[0, 0]], levels.noise[[0, 0]]))


@pytest.mark.parametrize(
    "name", ["StableDiffusionPAGPipeline", "WanPipeline", "Kandinsky5T2VPipeline", "Cosmos2TextToImagePipeline", "CogVideoXPipeline"]
)
def test_a_pipeline_whose_call_takes_one_time_is_probed_row_by_row(name):
    """As the forward policy does; each row's answer is that of the pipeline's own step at the same latent and time."""
    from mmalign.policies.pipelines.denoising.denoising_errors import DenoisingErrors

    policy = policy_of(name, steps=4, guidance_scale=1.0)
    rollout = sample(policy, ("a red fox",) * 2)
    times, levels = policy.schedule()
    heard, kernel = [], policy.kernel
    policy.kernel = lambda prediction, *rest: (heard.append(prediction), kernel(prediction, *rest))[1]
    columns = torch.tensor([0, 2])
    for column in columns:
        policy.steps(rollout, torch.arange(2), columns=column[None])
    x = torch.stack([rollout.held.x[column][row] for row, column in enumerate(columns)])
    level = type(levels)(levels.signal[columns], levels.noise[columns])
    asking = DenoisingErrors.__new__(DenoisingErrors)  # a schedule of training is not asked for here
    asking.of, asking.together = policy, {}
    predicted = asking.predicted(rollout.prompts, x, times[columns], level)
    assert predicted.clean.requires_grad and asking.together == {type(policy.pipe): name == "CogVideoXPipeline"}
    for row in range(2):  # row by row or together: other orders of adding
        wanted, allowed = heard[row].clean[row], clean_rounding(policy, Prediction(*(v[row] for v in heard[row])), x[row], level, row)
        torch.testing.assert_close(predicted.clean[row], wanted, rtol=0, atol=allowed)


def clean_rounding(policy, prediction, x, level, row):
    """How far two ways of adding may be apart in the clean latent.

    A number that a denoiser answers is a sum of sums, with as many roundings as there are products on a path to it: as a random walk the
    square root of that, of 2^-24 each, in both ways. Where the noise is answered, ``clean = (x - b noise) / a`` multiplies it by b / a.
    Two roundings of the latent's size come on top.
    """
    products = sum(p[0].numel() for p in policy.denoiser.parameters() if p.ndim > 1)
    of_noise = type(policy.pipe).__name__ == "StableDiffusionPAGPipeline"
    a, b = (float(level.signal[row]), float(level.noise[row])) if of_noise else (1.0, 1.0)
    answer = prediction.noise if of_noise else prediction.noise - prediction.clean
    return 2 * 2.0**-24 * (products**0.5 * b * float(answer.abs().max()) + 2 * float(x.abs().max())) / a


def test_both_halves_of_a_guidance_count_as_one():
    policy = policy_of("DiTPipeline", guidance_scale=4.0)
    rollout = sample(policy, ("3", "5"))
    assert rollout.log_probs.shape == (2, 3) and rollout.held.x.shape[1:3] == (2, 4) and rollout.held.x.ndim == 5
    assert difference(policy, rollout) == 0.0


def test_frames_in_the_batch_are_one_row():
    policy = policy_of("TextToVideoSDPipeline")
    rollout = sample(policy)
    assert rollout.held.x.shape[1:4] == (2, 4, 5)  # rows, channels, frames
    assert difference(policy, rollout) == 0.0
