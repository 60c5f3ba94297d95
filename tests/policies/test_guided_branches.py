"""The gradient of guidance through the conditional branch alone: against gradients by hand, in pipelines that guide by one call or two."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.policies.pipelines.rollouts.replay import transition_at_once
from mmalign.policies.twins import pipelines
from mmalign.samplers import kernels
from mmalign.types import UserError
from tests.helpers.flat import diffusers
from tests.policies.test_diffusers import make, pipeline_of, rollout_of, shaken

KERNEL = kernels.flow_sde(noise_level=0.7)
# pipeline -> (further arguments of its call, the denoiser's part, and of its answers in a step those without the prompt:
# halves of one call, or numbers of calls)
GUIDED = {
    "StableDiffusion3Pipeline": ({"guidance_scale": 4.5}, "transformer", ("half", 0)),
    "StableDiffusionXLPipeline": ({"guidance_scale": 5.0}, "unet", ("half", 0)),
    "WanPipeline": ({"guidance_scale": 3.0}, "transformer", ("call", 1)),
    "QwenImagePipeline": ({"true_cfg_scale": 4.0, "negative_prompt": "blurry", "max_sequence_length": 200}, "transformer", ("call", 1)),
    "ZImagePipeline": ({"guidance_scale": 3.0}, "transformer", ("half", 1)),
    "LTXPipeline": ({"guidance_scale": 3.0}, "transformer", ("half", 0)),
}


def of(name, choice, pipe=None):
    pipe = pipe or shaken(pipelines.twin(name))
    call = {**pipelines.call_arguments(pipe), **GUIDED[name][0]}
    return diffusers(pipe, steps=3, call=call, kernel=KERNEL, guidance_gradient=choice, device="cpu")


def gradient(policy, rollout, rows=None, columns=None):
    rows = torch.arange(len(rollout)) if rows is None else rows
    log_probs = policy.steps(rollout, rows, columns).log_probs
    weights = torch.linspace(0.5, 1.5, log_probs.numel()).reshape(log_probs.shape).double()
    grads = torch.autograd.grad((weights * log_probs).sum(), list(policy.parameters().values()), allow_unused=True)
    return log_probs.detach(), torch.cat([g.flatten().double() for g in grads if g is not None])


def close(one, two, tolerance):
    assert float((one - two).abs().max()) <= tolerance * float(two.abs().max())


def test_on_digits_the_gradient_is_the_one_written_out():
    """One step of an SDE with guidance 2, from the paper's formulas alone."""
    policy = make("digits", guidance=2.0, kernel=KERNEL, guidance_gradient="conditional")
    rollout = rollout_of(policy)
    got, ours = gradient(policy, rollout, columns=torch.tensor([1]))
    pipe, held = policy.pipe, rollout.held
    pipe.scheduler.set_timesteps(4)
    s, s_next = (pipe.scheduler.sigmas[place].double() for place in (1, 2))
    with torch.no_grad():
        words = [pipe.encode_prompt([""] * 4, "cpu"), pipe.encode_prompt(rollout.prompts, "cpu")]
    x = held.x[1]
    free, told = (
        pipe.transformer(
            hidden_states=x, timestep=pipe.scheduler.timesteps[1].expand(4), encoder_hidden_states=w[:, None], pooled_projections=w,
            return_dict=False,
        )[0].double() for w in words
    )  # fmt: skip
    v, g, h = free.detach() + 2.0 * (told - free.detach()), 0.7 * (s / (1 - s)).sqrt(), s - s_next
    mean = x - (v + g**2 / (2 * s) * (x + (1 - s) * v)) * h
    z = (held.x_next[1] - mean) / (g * h.sqrt())
    wanted = (-0.5 * z**2 - (g * h.sqrt()).log() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
    weights = torch.linspace(0.5, 1.5, 4).double()
    by_hand = torch.autograd.grad((weights * wanted).sum(), list(policy.parameters().values()), allow_unused=True)
    close(got[:, 0], wanted.detach(), 1e-5)
    close(ours, torch.cat([g.flatten().double() for g in by_hand if g is not None]), 1e-4)
    _, both = gradient(make("digits", guidance=2.0, kernel=KERNEL), rollout, columns=torch.tensor([1]))
    assert float((ours - both).abs().max()) > 0.05 * float(both.abs().max())


@pytest.mark.parametrize("name", list(GUIDED))
def test_of_any_pipeline_it_is_that_of_an_answer_cut_off(name):
    """Against the gradient of both branches, whose answer without the prompt loses its graph by hand."""
    policy = of(name, "conditional")
    rollout = policy.sample(["a red fox", "two blue birds"], 1, torch.Generator().manual_seed(0))
    got, ours = gradient(policy, rollout)
    assert float((got - rollout.log_probs[:, rollout.held.columns]).abs().max()) == 0.0
    whole = of(name, "both", policy.pipe)
    _, both = gradient(whole, rollout)
    _, part, (kind, negative) = GUIDED[name]
    seen = [0]

    def cut(module, args, output):
        answer = output[0]
        seen[0] += 1
        if kind == "half":
            rows = len(answer) // 2
            kept = [one.detach() if (number < rows) == (negative == 0) else one for number, one in enumerate(answer)]
            return ([*kept] if isinstance(answer, list) else torch.stack(kept), *tuple(output)[1:])
        return (answer.detach(), *tuple(output)[1:]) if (seen[0] - 1) % 2 == negative else None

    with policy.pipe.components[part].register_forward_hook(cut):
        values, wanted = gradient(whole, rollout)
    close(got, values, 1e-5)
    close(ours, wanted, 1e-3)
    assert float((ours - both).abs().max()) > 0.01 * float(both.abs().max())


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "WanPipeline"])
def test_what_is_asked_without_the_prompt_has_no_graph(name):
    policy, calls = of(name, "conditional"), []
    rollout = policy.sample(["a red fox", "two blue birds"], 1, torch.Generator().manual_seed(0))
    net = policy.pipe.transformer
    net.register_forward_hook(lambda module, args, output: calls.append((len(output[0]), output[0].requires_grad)))
    policy.steps(rollout, torch.arange(2), torch.tensor([0]))
    assert sorted(calls) == [(2, False), (2, True)]


def test_the_latent_keeps_its_gradient_through_both():
    """What a reward's gradient is carried back by; parameters still hear of the conditional branch alone."""
    gradients = {}
    for choice in ("both", "conditional"):
        policy = make("digits", guidance=2.0, kernel=KERNEL, guidance_gradient=choice)
        rollout = rollout_of(policy)
        x = rollout.held.x[1].clone().requires_grad_()
        mean = transition_at_once(policy, rollout, torch.arange(4), 1, x).mean
        gradients[choice] = torch.autograd.grad(mean.sin().sum(), [x, *policy.parameters().values()], allow_unused=True)
    close(gradients["conditional"][0], gradients["both"][0], 1e-5)
    parameters = [torch.cat([g.flatten() for g in gradients[choice][1:] if g is not None]) for choice in ("conditional", "both")]
    assert float((parameters[0] - parameters[1]).abs().max()) > 0.05 * float(parameters[1].abs().max())
    assert all(parameter.requires_grad for parameter in policy.parameters().values())


@pytest.mark.parametrize(
    ("name", "call", "line"),
    [
        ("StableDiffusion3Pipeline", {"guidance_scale": 1.0}, "asks its denoiser about nothing but the prompts"),
        ("StableDiffusionInstructPix2PixPipeline", {}, "about 6 rows for 2 prompts, of which those without a prompt are no half"),
        ("StableVideoDiffusionPipeline", {}, "takes no two prompts at once"),
        # whose twin has room for the words around a prompt alone
        ("QwenImagePipeline", {"true_cfg_scale": 4.0, "negative_prompt": "blurry"}, "does not depend on the prompt"),
    ],
)
def test_where_the_branches_cannot_be_told_it_is_one_line(name, call, line):
    pipe = pipelines.twin(name)
    policy = diffusers(pipe, steps=3, call={**pipelines.call_arguments(pipe), **call}, guidance_gradient="conditional", device="cpu")
    with pytest.raises(UserError, match=rf"^policy\.schedule\.guidance_gradient: got conditional, and .*{line}.*takes both[^\n]*$"):
        policy.random_steps(["a red fox", "two blue birds"])


def test_public_codes_have_their_names():
    assert mm.like("flow_grpo", mm.Schedule).guidance_gradient == "both"
    assert mm.like("DGPO", mm.Schedule, steps=7).guidance_gradient == "conditional"
    with pytest.raises(UserError, match=r"guidance_gradient: got 'text', takes"):
        diffusers(pipeline_of("digits"), guidance_gradient="text")
