"""What `check` sees of denoising steps before anything is loaded: windows, steps without noise, rewards without a gradient."""

from __future__ import annotations

import importlib
import sys

import pytest

from mmalign import config

LATENTS = "{use: on_latents, of: {use: torch.mean}}"
WRONG = [
    ("digits/mix_grpo", ["policy.schedule.window.size=8"], "policy.schedule.window: sliding_window.size: got 8, takes at most 7"),
    ("digits/mix_grpo", ["policy.schedule.steps=2"], "policy.schedule.window: sliding_window.size: got 2, takes at most 1"),
    ("digits/mix_grpo", ["policy.call={num_inference_steps: 2}"], "policy.schedule.window: sliding_window.size: got 2, takes at most 1"),
    ("digits/mix_grpo", ["policy.schedule.window={use: growing_window}"], "policy.schedule.window: growing_window.largest: got 20"),
    ("digits/mix_grpo", ["policy.schedule.kernel={use: ode}"], "policy.schedule: none of 8 steps is random, so there is nothing to train"),
    ("digits/mix_grpo", ["policy.schedule.kernel.noise_level=0"], "policy.schedule: none of 8 steps is random"),
    ("digits/draft", ["method.last_steps=9"], "method.last_steps: got 9, takes up to the 8 steps of policy.schedule"),
    ("digits/draft", ["method={use: adjoint_matching}"], "policy.schedule: none of 8 steps is random; this method takes a kernel"),
    ("digits/diffusion_nft", ["policy.guided=true"], "policy.guided: rows are sampled with guidance and predicted without, diffusion_nft"),
    ("digits/draft", ["rewards.size={use: jpeg}"], "rewards.size: jpeg has no gradient, and draft learns from nothing else"),
    ("text/grpo", [f"rewards.calm={LATENTS}"], "rewards.calm: scores latents, and the policy transformers has none; takes a policy of"),
    ("text/grpo", [f"rewards.calm={{use: combined, rewards: {{a: {LATENTS}}}}}"], "rewards.calm.rewards.a: scores latents, and the policy"),
    ("text/grpo", [f"evaluation.judges.calm={LATENTS}"], "evaluation.judges.calm: scores latents, and the policy transformers has none"),
    ("digits/mix_grpo", ["policy.schedule=null"], "policy.schedule: got None, takes a mapping of steps, guidance, kernel"),
    ("digits/draft", ["policy.schedule=[fast]"], "policy.schedule: got ['fast'], takes a mapping of steps, guidance, kernel"),
    ("digits/draft", ["rewards.size={use: frames, of: {use: jpeg}}"], "rewards.size.of: jpeg has no gradient, and draft learns"),
]


@pytest.mark.parametrize(("name", "words", "line"), WRONG, ids=[" ".join(words) for _, words, _ in WRONG])
def test_what_no_trajectory_could_be_trained_on_is_one_line(name, words, line):
    (error,) = config.check(config.load(name, words))
    assert error.startswith(line) and "\n" not in error


@pytest.mark.parametrize("words", [["policy.schedule.window.size=7"], ["policy.schedule.window=null"], ["policy.call={strength: 0.5}"]])
def test_what_fits_or_cannot_be_known_is_let_through(words):
    assert config.check(config.load("digits/mix_grpo", words)) == []


def test_a_method_that_only_watches_rewards_takes_any():
    """Distribution matching asks for no gradient of a reward that weighs nothing."""
    jpeg = "rewards.size={use: jpeg}"
    assert config.check(config.load("digits/dmd2", [jpeg])) == []
    (error,) = config.check(config.load("digits/dmd2", [jpeg, "method.reward=1.0"]))
    assert error.startswith("rewards.size: jpeg has no gradient")


def test_a_module_says_of_its_rewards_what_they_say():
    """The constant that `check` reads is the fact of what is built."""
    rewards = importlib.import_module("mmalign").rewards
    module = sys.modules[rewards.jpeg.__module__]
    assert module.jpeg().differentiable is module.DIFFERENTIABLE is False
    module = sys.modules[rewards.on_latents.__module__]
    assert module.on_latents(of=print).of_latents is module.OF_LATENTS is True
