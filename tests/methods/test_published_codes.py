"""From a denoiser's output to a loss and its gradient, as published codes go there, on fixed inputs: a line of theirs is a line here.

Every row of ``CODES`` is one code in its own words and order, stated again from its source: its step with a log-probability, its
advantages, its loss. Ours is a kernel and a method in the dialect that says so. Neither knows anything of the other but the inputs, so a
factor that one side forgets shows, whether it stands in the sampler or in the loss. (The oracles of ``tests/oracles`` start at tables.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import absolute
from mmalign.samplers import kernels
from mmalign.types import Feedback, Kernel, Level, Method, Steps

ROWS, GROUP, SHAPE, DIMS = 6, 3, (2, 2, 2), (1, 2, 3)
SCALARS = math.prod(SHAPE)
SIGMAS = [1.0, 0.8, 0.55, 0.3]  # the first step is from pure noise
ABARS = [0.1, 0.35, 0.7, 0.95]
REWARDS = torch.tensor([0.1, 0.9, 0.4, -0.3, 0.2, 1.7], dtype=torch.float64)
PROMPTS = torch.arange(ROWS) // GROUP


class Inputs(NamedTuple):
    """What is given: outputs of a denoiser ``[T, B, 2, 2, 2]`` now, when it sampled, and of the reference; latents, noise, data."""

    now: Tensor
    old: Tensor
    ref: Tensor
    x: Tensor
    noise: Tensor
    clean: Tensor


def inputs() -> Inputs:
    rng = torch.Generator().manual_seed(3)
    old, moved, apart, x, noise, clean = (torch.randn(3, ROWS, *SHAPE, generator=rng, dtype=torch.float64) for _ in range(6))
    return Inputs((old + 0.03 * moved).requires_grad_(), old, old + 0.1 * apart, x, noise, clean)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Theirs: steps. Each returns the mean, its std or what they call so, and "log_prob" as a mean over the latent


def flow_grpo_step(v: Tensor, i: int, x: Tensor, x_next: Tensor | None, z: Tensor, eta: float) -> tuple[Tensor, ...]:
    sigma, sigma_prev, sigma_max = SIGMAS[i], SIGMAS[i + 1], SIGMAS[1]
    dt = sigma_prev - sigma
    std_dev_t = math.sqrt(sigma / (1 - (sigma_max if sigma == 1 else sigma))) * eta
    mean = x * (1 + std_dev_t**2 / (2 * sigma) * dt) + v * (1 + std_dev_t**2 * (1 - sigma) / (2 * sigma)) * dt
    sample = mean + std_dev_t * math.sqrt(-1 * dt) * z if x_next is None else x_next
    log_prob = (
        -((sample.detach() - mean) ** 2) / (2 * (std_dev_t * math.sqrt(-1 * dt)) ** 2)
        - math.log(std_dev_t * math.sqrt(-1 * dt))
        - math.log(math.sqrt(2 * math.pi))
    ).mean(DIMS)
    return sample, log_prob, mean, number(std_dev_t), number(-dt)


def flow_cps_step(v: Tensor, i: int, x: Tensor, x_next: Tensor | None, z: Tensor, eta: float) -> tuple[Tensor, ...]:
    sigma, sigma_prev = SIGMAS[i], SIGMAS[i + 1]
    std_dev_t = sigma_prev * math.sin(eta * math.pi / 2)
    pred_original_sample = x - sigma * v
    noise_estimate = x + v * (1 - sigma)
    mean = pred_original_sample * (1 - sigma_prev) + noise_estimate * math.sqrt(sigma_prev**2 - std_dev_t**2)
    sample = mean + std_dev_t * z if x_next is None else x_next
    return sample, (-((sample.detach() - mean) ** 2)).mean(DIMS), mean, number(std_dev_t), number(sigma - sigma_prev)


def dance_step(v: Tensor, i: int, x: Tensor, x_next: Tensor | None, z: Tensor, eta: float, *, constants: bool = True) -> tuple[Tensor, ...]:
    sigma, dsigma = SIGMAS[i], SIGMAS[i + 1] - SIGMAS[i]
    mean = x + dsigma * v
    pred_original_sample = x - sigma * v
    std_dev_t = eta * math.sqrt(-dsigma)
    score_estimate = -(x - pred_original_sample * (1 - sigma)) / sigma**2
    mean = mean + (-0.5 * eta**2 * score_estimate) * dsigma
    sample = mean + z * std_dev_t if x_next is None else x_next
    log_prob = -((sample.detach() - mean) ** 2) / (2 * std_dev_t**2)
    log_prob = log_prob - math.log(std_dev_t) - math.log(math.sqrt(2 * math.pi)) if constants else log_prob
    return sample, log_prob.mean(DIMS), mean, number(std_dev_t), number(-dsigma)


def mix_step(*given: Any) -> tuple[Tensor, ...]:
    return dance_step(*given, constants=False)  # MixGRPO's copy, whose constants stand on a line of their own


def ddim_step(e: Tensor, i: int, x: Tensor, x_next: Tensor | None, z: Tensor, eta: float) -> tuple[Tensor, ...]:
    alpha_prod_t, alpha_prod_t_prev = ABARS[i], ABARS[i + 1]
    variance = (1 - alpha_prod_t_prev) / (1 - alpha_prod_t) * (1 - alpha_prod_t / alpha_prod_t_prev)
    std_dev_t = eta * math.sqrt(variance)
    pred_original_sample = (x - math.sqrt(1 - alpha_prod_t) * e) / math.sqrt(alpha_prod_t)
    mean = math.sqrt(alpha_prod_t_prev) * pred_original_sample + math.sqrt(1 - alpha_prod_t_prev - std_dev_t**2) * e
    sample = mean + std_dev_t * z if x_next is None else x_next
    log_prob = (-((sample.detach() - mean) ** 2) / (2 * (std_dev_t**2)) - math.log(std_dev_t) - math.log(math.sqrt(2 * math.pi))).mean(DIMS)
    return sample, log_prob, mean, number(std_dev_t), number(1.0)


# Theirs: advantages and losses


def by_prompt(*, global_std: bool, unbiased: bool, eps: float) -> Tensor:
    advantages = torch.zeros(ROWS, dtype=torch.float64)
    for prompt in PROMPTS.unique():
        here = prompt == PROMPTS
        std = REWARDS.std(unbiased=unbiased) if global_std else REWARDS[here].std(unbiased=unbiased)
        advantages[here] = (REWARDS[here] - REWARDS[here].mean()) / (std + eps)
    return advantages.clamp(-5, 5)


def ppo(advantages: Tensor, ratio: Tensor, clip_range: float) -> Tensor:
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * torch.clamp(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return torch.maximum(unclipped_loss, clipped_loss)


class Code(NamedTuple):
    """A published code: its step and eta, its loss of one denoising step; our kernel and method."""

    step: Callable[..., tuple[Tensor, ...]]
    eta: float
    loss: Callable[..., Tensor]
    kernel: Kernel
    method: Method


def flow_grpo_loss(now: Any, old: Any, ref: Any) -> Tensor:
    policy_loss = ppo(by_prompt(global_std=True, unbiased=False, eps=1e-4), torch.exp(now[1] - old[1]), 1e-4).mean()
    kl_loss = ((now[2] - ref[2]) ** 2).mean(dim=DIMS, keepdim=True) / (2 * now[3] ** 2)
    return policy_loss + 0.04 * kl_loss.mean()


def flow_cps_loss(now: Any, old: Any, ref: Any) -> Tensor:
    return ppo(by_prompt(global_std=True, unbiased=False, eps=1e-4), torch.exp(now[1] - old[1]), 1e-5).mean()


def verl_loss(now: Any, old: Any, ref: Any) -> Tensor:
    policy_loss = ppo(by_prompt(global_std=True, unbiased=True, eps=1e-4), torch.exp(now[1] - old[1]), 1e-4).mean()
    return policy_loss + 0.04 * (((now[2] - ref[2]) ** 2).mean(dim=DIMS) / (2 * now[3] ** 2)).mean()


def dance_loss(now: Any, old: Any, ref: Any) -> Tensor:
    return ppo(by_prompt(global_std=False, unbiased=True, eps=1e-8), torch.exp(now[1] - old[1]), 1e-4).mean()


def ddpo_loss(now: Any, old: Any, ref: Any) -> Tensor:
    return ppo(by_prompt(global_std=False, unbiased=False, eps=1e-6), torch.exp(now[1] - old[1]), 1e-4).mean()


def guard_loss(now: Any, old: Any, ref: Any) -> Tensor:
    scale = now[3] * torch.sqrt(now[4])  # the std of the step
    ratio_mean_bias = ((now[2] - old[2]) ** 2).mean(DIMS) / (2 * scale**2)
    ratio = torch.exp((now[1] - old[1] + ratio_mean_bias) * scale)
    return (ppo(by_prompt(global_std=True, unbiased=True, eps=1e-4), ratio, 2e-6) / now[4]).mean()


def dppo_loss(now: Any, old: Any, ref: Any) -> Tensor:
    advantages = by_prompt(global_std=True, unbiased=True, eps=1e-4)
    ratio = torch.exp(now[1] - old[1])
    kl = ((now[2] - old[2]) ** 2).mean(DIMS).detach() / (2 * now[3] ** 2 * now[4])
    outwards = ((advantages > 0) & (ratio > 1)) | ((advantages < 0) & (ratio < 1))
    return (-advantages * ratio * ~((kl >= 1e-5) & outwards)).mean()


FLOW, DANCE, CPS = mm.kernels.flow_sde(noise_level=0.7), mm.kernels.dance_sde(noise_level=0.3), mm.kernels.cps(noise_level=0.8)
METHODS = mm.methods
CODES = {
    "flow_grpo": Code(flow_grpo_step, 0.7, flow_grpo_loss, FLOW, mm.like("flow_grpo", METHODS.flow_grpo)),
    "verl-omni": Code(flow_grpo_step, 0.7, verl_loss, FLOW, mm.like("verl-omni", METHODS.flow_grpo, beta=0.04)),
    "flow_grpo, cps": Code(flow_cps_step, 0.8, flow_cps_loss, CPS, METHODS.flow_grpo(ratio="cps", clip=1e-5)),
    "DanceGRPO": Code(dance_step, 0.3, dance_loss, DANCE, METHODS.dance_grpo()),
    "DanceGRPO, as flow_grpo": Code(dance_step, 0.3, dance_loss, DANCE, mm.like("DanceGRPO", METHODS.flow_grpo)),
    "MixGRPO": Code(mix_step, 0.3, dance_loss, DANCE, mm.like("DanceGRPO", METHODS.flow_grpo)),
    "ddpo-pytorch": Code(ddim_step, 1.0, ddpo_loss, mm.kernels.ddim(eta=1.0), mm.like("ddpo-pytorch", METHODS.ddpo)),
    "verl-omni, GRPO-Guard": Code(flow_grpo_step, 0.7, guard_loss, FLOW, mm.like("verl-omni", METHODS.grpo_guard)),
    "verl-omni, Flow-DPPO": Code(flow_grpo_step, 0.7, dppo_loss, FLOW, mm.like("verl-omni", METHODS.flow_dppo)),
}


@pytest.mark.parametrize("name", CODES)
def test_steps_losses_and_gradients_are_those_of_the_code(name: str) -> None:
    code, given = CODES[name], inputs()
    theirs = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        x_next, *_ = sampled = code.step(given.old[i], i, given.x[i], None, given.noise[i], code.eta)
        now, ref = (code.step(v[i], i, given.x[i], x_next, given.noise[i], code.eta) for v in (given.now, given.ref))
        theirs = theirs + code.loss(now, sampled, ref) / 3
    ours = _loss(code.method, _transitions(given, code.kernel, ddim=code.step is ddim_step))
    (wanted,), (got,) = torch.autograd.grad(theirs, given.now), torch.autograd.grad(ours, given.now)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-11)  # differences of the last bits of float64 numbers, over a std of .1
    assert float(wanted.abs().max()) > 1e-4


def _loss(method: Method, steps: Steps) -> Tensor:
    loss = method.loss(steps, method.signal(Feedback(REWARDS, PROMPTS)))
    return (method.weigh(steps.mask) * loss.values).sum()


def _transitions(given: Inputs, kernel: Kernel, *, ddim: bool) -> Steps:
    """The table of the same steps: what a policy would have recorded, and says of it now."""
    tables: dict[str, list[Tensor]] = {name: [] for name in ("log_probs", "old", "ref", "kl", "std", "dt", "drift")}
    for i in range(3):
        if ddim:
            level, level_next = (Level(number(a).sqrt(), number(1 - a).sqrt()) for a in ABARS[i : i + 2])
        else:
            level, level_next = (Level(number(1 - s), number(s)) for s in SIGMAS[i : i + 2])
        kind: kernels.Parametrisation = "epsilon" if ddim else "flow"

        def step(output: Tensor, i: int = i, at: Level = level, to: Level = level_next, kind: kernels.Parametrisation = kind) -> Any:
            return kernel(kernels.predict(output, given.x[i], at, parametrisation=kind), given.x[i], at, to)

        (mean, std), (mean_old, _), (mean_ref, _) = (step(v[i]) for v in (given.now, given.old, given.ref))
        x_next = mean_old + std * given.noise[i]
        for key, one in (("log_probs", mean), ("old", mean_old), ("ref", mean_ref)):
            tables[key].append(kernels.log_prob(x_next, one, std))
        tables["kl"].append(kernels.kl(mean, std, mean_ref, std))
        tables["drift"].append(kernels.kl(mean_old, std, mean, std))
        tables["std"].append(std.expand(ROWS))
        tables["dt"].append((kernels.flow_time(level) - kernels.flow_time(level_next)).expand(ROWS))
    stacked = {key: torch.stack(columns, 1) for key, columns in tables.items()}
    return Steps(
        stacked["log_probs"], torch.ones(ROWS, 3, dtype=torch.bool), stacked["old"],
        refs={"ref": stacked["ref"]}, kls={"ref": stacked["kl"]},
        facts={"std": stacked["std"], "dt": stacked["dt"]}, terms={"drift": stacked["drift"]}, event_size=SCALARS, kind="transition",
    )  # fmt: skip


# On the forward process


def nft_loss(given: Inputs, beta: float, adv_clip_max: float = 5.0) -> Tensor:
    """train_nft_sd3.py: of each noise level, the two implicit predictions, weighed by their own error."""
    advantages = by_prompt(global_std=True, unbiased=False, eps=1e-4)
    r = torch.clamp(advantages / adv_clip_max / 2.0 + 0.5, 0, 1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        t, x0 = SIGMAS[i], given.clean[i]
        xt = (1 - t) * x0 + t * given.noise[i]
        positive_prediction = beta * given.now[i] + (1 - beta) * given.old[i]
        implicit_negative_prediction = (1.0 + beta) * given.old[i] - beta * given.now[i]
        losses = []
        for prediction in (positive_prediction, implicit_negative_prediction):
            x0_prediction = xt - t * prediction
            weight_factor = torch.abs(x0_prediction.detach() - x0).mean(dim=DIMS, keepdim=True).clip(min=0.00001)
            losses.append(((x0_prediction - x0) ** 2 / weight_factor).mean(dim=DIMS))
        policy_loss = (r * losses[0] / beta + (1.0 - r) * losses[1] / beta) * adv_clip_max
        kl_div_loss = ((given.now[i] - given.ref[i]) ** 2).mean(dim=DIMS)
        total = total + (policy_loss.mean() + 0.0001 * kl_div_loss.mean()) / 3
    return total


def awm_loss(given: Inputs, beta: float) -> Tensor:
    """advantage_weighted_matching: the pretraining loss as a log-probability, in its generalised Huber form."""
    advantages = by_prompt(global_std=True, unbiased=False, eps=1e-4) / 5
    total = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        t, target = SIGMAS[i], given.noise[i] - given.clean[i]
        log_probs = []
        for v in (given.now, given.old):
            squared = ((v[i] - target) ** 2).mean(DIMS)
            log_probs.append(-t / 0.25 * ((squared + 1e-10) ** 0.25 - 1e-10**0.25))
        ratio = torch.exp(log_probs[0] - log_probs[1].detach())
        total = total + (ppo(advantages, ratio, beta).mean() + 0.001 * ((given.now[i] - given.ref[i]) ** 2).mean(DIMS).mean()) / 3
    return total


FORWARD: dict[str, tuple[Callable[[Inputs, float], Tensor], float, Method]] = {
    "DiffusionNFT, OCR": (nft_loss, 1.0, mm.like("DiffusionNFT OCR", mm.methods.diffusion_nft)),
    "DiffusionNFT, several rewards": (nft_loss, 0.1, mm.like("DiffusionNFT multi-reward", mm.methods.diffusion_nft)),
    "AWM": (awm_loss, 1.0, mm.methods.awm(weight="generalised_huber")),
    "AWM, clipped": (awm_loss, 1e-3, mm.methods.awm(weight="generalised_huber", clip=1e-3)),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_losses_and_gradients_are_those_of_the_code(name: str) -> None:
    code, beta, method = FORWARD[name]
    given = inputs()
    theirs, ours = code(given, beta), _loss(method, _bounds(given, beta))
    (wanted,), (got,) = torch.autograd.grad(theirs, given.now), torch.autograd.grad(ours, given.now)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-11)
    assert float(wanted.abs().max()) > 1e-4


def _bounds(given: Inputs, beta: float) -> Steps:
    target = given.noise - given.clean

    def rows(values: Tensor) -> Tensor:
        return values.flatten(2).sum(-1).T  # [T, B, ...] -> [B, T]

    bound = {name: rows(-0.5 * (v - target) ** 2) for name, v in (("now", given.now), ("previous", given.old), ("ref", given.ref))}
    near = {name: rows(0.5 * (given.now - v) ** 2) for name, v in (("previous", given.old), ("ref", given.ref))}
    facts = {"noise": torch.tensor(SIGMAS[:3], dtype=torch.float64).expand(ROWS, 3)}
    for share in (beta, -beta):
        mixture = (share * given.now + (1 - share) * given.old - target).detach()
        facts[str(absolute("previous", share))] = rows(mixture.abs()) / SCALARS
    return Steps(
        bound["now"], torch.ones(ROWS, 3, dtype=torch.bool), refs={name: bound[name] for name in ("previous", "ref")}, kls=near,
        facts=facts,
        event_size=SCALARS, kind="bound",
    )  # fmt: skip


def test_sppo_of_its_authors():
    """Five answers there, four here: the best and the worst go to their own win rates among the others, .4047 and -.3049 over beta."""
    rewards, group = torch.tensor([2.0, 0.0, 0.0, -1.0]).double(), torch.zeros(4, dtype=torch.int64)
    feedback = Feedback(rewards, group, pairs=torch.tensor([[0, 3]]))
    method = mm.like("SPPO", mm.methods.sppo)
    signal = method.signal(feedback)[[0, 3]]
    log_probs = torch.tensor([[404.7], [-304.9]]).double().requires_grad_()
    steps = Steps(log_probs, torch.ones(2, 1, dtype=torch.bool), refs={"ref": torch.zeros(2, 1).double()})
    loss = (method.weigh(steps.mask) * method.loss(steps, signal).values).sum()
    loss.backward()
    assert log_probs.grad.abs().max() < 0.06 and loss.item() < 1e-2  # nats from the target, of 405; the digits of the constants
