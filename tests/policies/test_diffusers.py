"""Record, replay, probe on real pipeline classes: no per-model code, and differences of 0.0."""

from __future__ import annotations

import math

import diffusers as diffusers_package
import pytest
import torch

import mmalign as mm
from mmalign.needs import DRIFT, DT, OLD, STD
from mmalign.policies.pipelines.rollouts.replay import transition
from mmalign.policies.twins import pipelines
from mmalign.samplers import kernels
from mmalign.samplers.windows import everything, random_window
from mmalign.types import Level, Need, UserError
from tests.helpers.flat import diffusers

# name -> (pipeline class or digits network, scheduler, further arguments of the policy)
PIPELINES = {
    "digits": ("dit", None, {"guidance": 2.0}),
    "digits_sd3": ("sd3", None, {}),
    "stable_diffusion": ("StableDiffusionPipeline", None, {"guidance": 5.0}),
    "stable_diffusion_pndm": ("StableDiffusionPipeline", "PNDMScheduler", {"guidance": 5.0}),
    "stable_diffusion_dpm": ("StableDiffusionPipeline", "DPMSolverMultistepScheduler", {"guidance": 1.0}),
    "stable_diffusion_euler": ("StableDiffusionPipeline", "EulerAncestralDiscreteScheduler", {"guidance": 5.0}),
    "sdxl": ("StableDiffusionXLPipeline", None, {"guidance": 5.0}),
    "sd3": ("StableDiffusion3Pipeline", None, {"guidance": 4.5}),
    "flux": ("FluxPipeline", None, {"guidance": 3.5}),
}
NAMES = list(PIPELINES)
KERNELS = {
    "flow": kernels.flow_sde(noise_level=0.7),
    "dance": kernels.dance_sde(noise_level=0.3),
    "cps": kernels.cps(noise_level=0.8),
    "ddim": kernels.ddim(eta=1.0),
}
ALL = frozenset({OLD, Need("refs"), Need("kls"), STD, DT})


def shaken(pipe):
    pipelines.shake_parameters(pipe, 0.05)
    return pipe


def pipeline_of(name):
    kind, scheduler, _ = PIPELINES[name]
    if kind[0].islower():
        from mmalign.worlds.digits.base import untrained

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return shaken(untrained(kind))
    plan = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return pipelines.twin(kind, scheduler=getattr(diffusers_package, scheduler)(**plan) if scheduler else None)


def make(name, **more):
    pipe, arguments = pipeline_of(name), PIPELINES[name][2]
    call = {} if name.startswith("digits") else pipelines.call_arguments(pipe)
    return diffusers(pipe, **{"steps": 4, "call": call, **arguments, **more})


def rollout_of(policy, prompts=("a 1", "a 2"), seed=0, group_size=2):
    return policy.sample(list(prompts), group_size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_replay_equals_record_to_the_last_bit(name, kernel):
    policy = make(name, kernel=KERNELS[kernel])
    rollout = rollout_of(policy)
    steps = policy.steps(rollout, torch.arange(4), needs=ALL)
    assert int(steps.mask.sum()) == 4 * 3
    assert float((steps.log_probs - steps.old).abs().max()) == 0.0
    assert bool(rollout.outputs.isfinite().all())
    steps.log_probs.sum().backward()
    norms = [float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None]
    assert norms and all(math.isfinite(n) for n in norms) and max(norms) > 0


def test_the_drift_is_the_kl_to_the_policy_that_sampled():
    policy = make("digits_sd3", kernel=KERNELS["flow"], window=random_window(size=2, within=(0.0, 1.0)))
    with pytest.raises(UserError, match="keeps no means"):
        policy.steps(rollout_of(policy), torch.arange(4), needs=frozenset({DRIFT}))
    rollout = policy.sample(["a 1", "a 2"], 2, torch.Generator().manual_seed(0), drift=True)
    policy.sets.keep("then")
    assert not policy.steps(rollout, torch.arange(4), needs=frozenset({DRIFT})).terms["drift"].any()
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    policy.remember(rollout, ["then"], 4)
    steps = policy.steps(rollout, torch.arange(4), needs=frozenset({DRIFT, Need("kls")}))
    assert bool((steps.terms["drift"] > 1e-3).all())
    torch.testing.assert_close(steps.terms["drift"], steps.kls["then"], rtol=1e-5, atol=0)
    steps.terms["drift"].sum().backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in policy.parameters().values())


def test_a_replay_hands_over_latents_in_the_layout_of_the_rollout():
    """A denoiser that predicts the clean latent and answers channels last: convolutions go by the layout, and so do their last bits."""
    plan = diffusers_package.DDIMScheduler(prediction_type="sample", clip_sample=False)
    pipe = pipelines.twin("StableDiffusionPipeline", scheduler=plan)
    pipe.unet.register_forward_hook(lambda unet, args, output: (output[0].to(memory_format=torch.channels_last),))
    strides = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: strides.append(args[0].stride()))
    policy = diffusers(pipe, steps=4, call=pipelines.call_arguments(pipe), kernel=kernels.ddim(eta=1.0), window=everything())
    rollout = rollout_of(policy)
    sampled = strides[:]
    for column in range(3):  # the last one has no noise, and is not trained
        strides.clear()
        policy.steps(rollout, torch.arange(4), columns=torch.tensor([column]))
        assert strides[-1] == sampled[column]


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_parameter_changes_the_log_probability(name):
    policy = make(name)
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 4)
    shaken(policy.pipe)
    steps = policy.steps(rollout, torch.arange(4), needs=ALL)
    assert float((steps.log_probs - steps.old).abs().min()) > 0
    assert float(steps.kls["ref"].min()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_lora_starts_at_the_reference_and_its_gradient_arrives(name):
    policy = make(name, lora={"rank": 2})
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 4)
    steps = policy.steps(rollout, torch.arange(4), needs=ALL)
    assert float(steps.kls["ref"].abs().max()) == 0.0
    assert torch.equal(steps.refs["ref"], steps.old)
    steps.log_probs.sum().backward()
    assert all("lora_" in key for key in policy.parameters())
    assert max(float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None) > 0


@pytest.mark.parametrize("name", NAMES)
def test_probe_takes_a_vector_of_times_and_agrees_with_single_ones(name):
    policy = make(name)
    rollout = rollout_of(policy)
    times, levels = policy.schedule()
    columns = torch.tensor([0, 1, 2, 1])
    x = torch.stack([rollout.held.x[c][row] for row, c in enumerate(columns.tolist())])
    level = Level(levels.signal[columns], levels.noise[columns])
    together = policy.probe(rollout.prompts, x, times[columns], level)
    for row, column in enumerate(columns.tolist()):
        alone = policy.probe(
            rollout.prompts[row : row + 1],
            x[row : row + 1],
            times[columns][row : row + 1],
            Level(level.signal[row : row + 1], level.noise[row : row + 1]),
        )
        assert torch.allclose(together.clean[row], alone.clean[0], atol=1e-4, rtol=1e-4), column
    assert together.clean.requires_grad


@pytest.mark.parametrize("name", ["sd3", "flux", "stable_diffusion", "digits"])
def test_bf16_models_replay_exactly_with_float64_tables(name):
    policy = make(name)
    policy.pipe.to(torch.bfloat16)
    rollout = rollout_of(policy)
    steps = policy.steps(rollout, torch.arange(4))
    assert rollout.held.x.dtype == torch.bfloat16
    assert steps.log_probs.dtype == torch.float64
    assert float((steps.log_probs - steps.old).abs().max()) == 0.0


@pytest.mark.parametrize("name", ["digits", "sd3", "stable_diffusion"])
def test_gradient_checkpointing_changes_no_number(name):
    latents = []
    for on in (False, True):
        policy = make(name, gradient_checkpointing=on)
        steps = policy.steps(rollout_of(policy), torch.arange(4))
        steps.log_probs.sum().backward()
        latents.append(torch.cat([p.grad.flatten() for p in policy.parameters().values() if p.grad is not None]))
    assert torch.allclose(latents[0], latents[1], rtol=1e-5, atol=1e-5 * float(latents[0].abs().max()))


def test_own_scheduler_comes_back_even_after_an_exception():
    policy = make("sd3")
    own = policy.pipe.scheduler
    with pytest.raises(RuntimeError), torch.no_grad():
        policy.denoiser.forward = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("broken"))
        rollout_of(policy)
    assert policy.pipe.scheduler is own
    assert "encode_prompt" not in policy.pipe.__dict__


def test_rows_do_not_depend_on_the_chunk_they_were_sampled_in():
    whole, parts = (make("digits", rows_at_once=size) for size in (8, 3))
    a, b = rollout_of(whole, group_size=4), rollout_of(parts, group_size=4)
    assert torch.allclose(a.held.x_next, b.held.x_next, atol=1e-5)
    assert torch.equal(a.held.x[0], b.held.x[0])


def test_a_group_shares_its_noise_only_where_asked():
    for same in (False, True):
        x = rollout_of(make("digits", same_noise=same)).held.x[0]
        assert torch.equal(x[0], x[1]) is same
        assert not torch.equal(x[0], x[2])


def test_windows_say_which_steps_are_random_and_trained():
    policy = make("digits", window=random_window(size=1, within=(0.0, 0.75)))
    rollout = rollout_of(policy)
    assert rollout.mask.sum(1).tolist() == [1] * 4
    assert float(rollout.log_probs[~rollout.mask].abs().max()) == 0
    column = int(rollout.mask[0].nonzero())
    steps = policy.steps(rollout, torch.arange(4))
    assert steps.log_probs.shape == (4, 1) and torch.equal(steps.old[:, 0], rollout.log_probs[:, column])


def test_a_deterministic_last_step_is_never_trained():
    rollout = rollout_of(make("digits", window=everything()))
    assert rollout.mask[0].tolist() == [True, True, True, False]


def test_named_sets_swap_and_come_back():
    policy = make("digits")
    before = {key: p.detach().clone() for key, p in policy.parameters().items()}
    policy.sets.keep("previous")
    shaken(policy.pipe)
    now = {key: p.detach().clone() for key, p in policy.parameters().items()}
    for name in ("ref", "previous"):
        with policy.using(name):
            assert all(torch.equal(p, before[key]) for key, p in policy.parameters().items())
        assert all(torch.equal(p, now[key]) for key, p in policy.parameters().items())
    policy.sets.follow("ema", decay=0.5)
    policy.sets.follow("ema", decay=0.0)
    assert all(torch.equal(policy.sets.sets["ema"][key], now[key]) for key in now)
    with pytest.raises(UserError, match="nowhere"), policy.using("nowhere"):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"call": {"altitude": 3}}, "altitude"),
        ({"lora": {"targets": ["to_x"]}}, "matches no linear layer"),
    ],
)
def test_what_the_pipeline_does_not_take_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        diffusers(pipelines.twin("StableDiffusionPipeline"), **arguments)


NEGATIVE = (
    "StableDiffusionPipeline", "StableDiffusionControlNetPipeline", "AnimateDiffPipeline", "HunyuanDiTPipeline", "Kandinsky3Pipeline",
    "IFPipeline", "StableDiffusion3Pipeline",
)  # fmt: skip


@pytest.mark.parametrize("name", NEGATIVE)
def test_a_negative_prompt_is_that_of_every_row(name):
    pipe = shaken(pipelines.twin(name))
    call = {**pipelines.call_arguments(pipe), "negative_prompt": "blurry"}
    policy = diffusers(pipe, steps=2, call=call, device="cpu")
    rollout = policy.sample(["a red fox", "two blue birds"], 1, torch.Generator().manual_seed(0))
    replayed = policy.steps(rollout, torch.tensor([1])).log_probs
    assert float((replayed - rollout.log_probs[1:, rollout.held.columns]).abs().max()) < 1e-3 * rollout.held.event_size
    alone = diffusers(pipe, steps=2, call=call, device="cpu").sample(["two blue birds"], 1, torch.Generator().manual_seed(3))
    assert alone.outputs.shape == rollout.outputs[1:].shape
    assert policy.generate(["a red fox", "two blue birds"], [0, 1]).shape == rollout.outputs.shape


@pytest.mark.parametrize(("steps", "noise_level"), [(1, 1.0), (4, 0.0)])
def test_a_schedule_without_a_random_step_has_nothing_in_its_mask(steps, noise_level):
    """Who learns from random steps refuses it (``training.rollouts.reward_gradients``); who carries a gradient through them does not."""
    policy = make("digits", steps=steps, kernel=kernels.flow_sde(noise_level=noise_level), window=everything())
    rollout = policy.sample(["a 3"], 2, torch.Generator().manual_seed(0), drift=True)
    assert not bool(rollout.mask.any()) and len(rollout.held.means) == 0 and len(rollout.take(torch.tensor([1])).held.means) == 0


def counting(policy):
    """How often the denoiser has run, in a list of one number."""
    runs = [0]

    def count(*_):
        runs[0] += 1

    policy.denoiser.register_forward_hook(count)
    return runs


def test_what_cannot_be_recorded_is_refused_at_the_first_step():
    long = make("digits", steps=6, window=lambda num_steps, step, rng: torch.ones(num_steps + 1, dtype=torch.bool))
    runs = counting(long)
    with pytest.raises(UserError, match=r"policy\.schedule\.window: got a mask of shape \[7\], takes \[6\]"):
        long.sample(["a 3"], 2, torch.Generator().manual_seed(0))
    assert runs == [1]
    for window, line in (
        (random_window(size=9), r"random_window\.size: got 9, takes at most 3"),
        (random_window(size=4), r"random_window\.size: got 4, takes at most 3"),
    ):
        with pytest.raises(UserError, match=line):
            make("digits", steps=6, window=window).sample(["a 3"], 2, torch.Generator().manual_seed(0))
        with pytest.raises(UserError, match=line):
            make("digits", steps=6, window=window).random_steps(["a 3"])


def test_which_steps_will_be_random_is_known_before_any_is_taken():
    for last in ("ode", "noise"):
        kernel, window = kernels.flow_sde(noise_level=0.7, last=last), lambda num_steps, step, rng: torch.arange(num_steps) > 0
        policy = make("digits", kernel=kernel, window=window)
        runs = counting(policy)
        random = policy.random_steps(["a 3"])
        assert random.tolist() == [False, True, True, last == "noise"] and runs == [1]
        assert rollout_of(policy).mask.tolist() == [random.tolist()] * 4
    assert not bool(make("digits", kernel=kernels.ode()).random_steps(["a 3"]).any())


@pytest.mark.parametrize(
    ("times", "line"), [(2, r"asks its scheduler more than once at one time \(question 2\)"), (0, "never asks its scheduler")]
)
def test_a_loop_that_steps_twice_or_never_is_refused(monkeypatch, times, line):
    policy = make("digits", steps=3)
    runs, kind = counting(policy), type(policy.pipe)
    own = kind.__call__

    def call(self, *args, **kwargs):
        step = self.scheduler.step

        def several(output, timestep, sample, **more):
            for _ in range(times - 1):
                step(output, timestep, sample, **more)
            return step(output, timestep, sample, **more) if times else (sample,)

        self.scheduler.__dict__["step"] = several
        return own.__wrapped__(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", call)
    with pytest.raises(UserError, match=line):
        policy.random_steps(["a 3"])
    assert runs == [1]  # for the shape of its answer
    with pytest.raises(UserError, match=line):
        policy.sample(["a 3"], 2, torch.Generator().manual_seed(0))
    assert times == 0 or runs == [2]


def test_a_type_that_is_none_of_those_is_refused_before_anything_is_loaded():
    from mmalign.policies.language.models import loading
    from mmalign.policies.pipelines.calls import calling

    for load in (calling.load, loading.load):
        with pytest.raises(UserError, match=r"policy\.dtype: got 'half', takes float32, bfloat16, float16"):
            load("an-organisation/a-model", dtype="half")


CALLS = [
    (
        {"num_inference_step": 2},
        r"call\.num_inference_step: DigitsPipeline takes no such argument; nearest: num_inference_steps; it takes ",
    ),
    ({"num_inference_steps": None}, r"call\.num_inference_steps: got None, takes int"),
    ({"num_inference_steps": "ten"}, r"call\.num_inference_steps: got 'ten', takes int"),
    ({"guidance_scale": True}, r"call\.guidance_scale: got True, takes float"),
]


@pytest.mark.parametrize(("call", "line"), CALLS)
def test_an_argument_that_the_call_does_not_take_is_refused_before_it_runs(tmp_path, call, line):
    pipe = mm.worlds.digits()
    policy = mm.policies.diffusers(pipe, schedule=mm.Schedule(steps=2))
    for some_policy in (policy, mm.policies.forward(policy)):
        with pytest.raises(UserError, match=line):
            some_policy.generate(["a handwritten seven"], [0], **call)
    settings = {"evaluation": {"call": call}, "run": {"folder": str(tmp_path), "trackers": ()}}
    with pytest.raises(UserError, match=line):
        mm.online(policy, ["a handwritten seven"], {"r": mm.worlds.digits_proxy()}, mm.methods.flow_grpo(), steps=1, **settings)
    with pytest.raises(UserError, match=line):
        mm.guided_sample(pipe, prompts=["a handwritten seven"], call=call)
    with pytest.raises(UserError, match=line):
        mm.compare(pipe, mm.worlds.digits_proxy(), guidance=["fk"], prompts=["a handwritten seven"], call=call)


@pytest.mark.parametrize("name", ["MochiPipeline", "LongCatAudioDiTPipeline"])
def test_sigmas_that_are_the_part_of_data_lead_where_the_pipeline_goes(name):
    """``invert_sigmas``: the schedule rises from 0 to 1, and the model says ``x_0 - eps``."""
    plan = diffusers_package.FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True)
    pipe = pipelines.twin(name, scheduler=plan)
    call = pipelines.call_arguments(pipe)
    policy = diffusers(pipe, steps=3, call=call, kernel=kernels.ode(), device="cpu")
    rollout = policy.sample(["a red fox"], 1, torch.Generator().manual_seed(0))
    own = policy.generate(["a red fox"], rollout.held.starts.tolist())
    assert bool((rollout.held.dt > 0).all()) and float((rollout.outputs - own).abs().max()) < 1e-4 * (1 + float(own.abs().max()))
    policy = diffusers(pipe, steps=3, call=call, guidance=1.0, kernel=KERNELS["flow"], device="cpu")
    assert policy.random_steps(["a red fox"]).tolist() == [True, True, False]
    rollout = policy.sample(["a red fox"], 1, torch.Generator().manual_seed(0))
    assert float((policy.steps(rollout, torch.arange(1)).log_probs - rollout.log_probs[:, :2]).abs().max()) == 0.0
    times, levels = policy.schedule()
    level = Level(*(value[1:2].to(rollout.held.x) for value in levels))
    probed = policy.probe(["a red fox"], rollout.held.x[1], times[1:2], level)
    torch.testing.assert_close(probed.clean, transition(policy, rollout, torch.arange(1), 1).clean, rtol=1e-4, atol=1e-4)
