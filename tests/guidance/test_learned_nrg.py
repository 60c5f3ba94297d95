"""A reward of noisy latents that was learned from comparisons, against a world in closed form: how near to Bayes it comes, and where it
guides to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

import mmalign as mm
from mmalign.records import Pair
from mmalign.types import Level
from mmalign.worlds import gaussian
from mmalign.worlds.digits.model import DigitsTextEncoder, DigitsTransformer
from mmalign.worlds.digits.pipeline import DigitsPipeline

PROMPT = "a handwritten two"
BASE = gaussian.one_gaussian([0.3, -0.3, 0.0, 0.2], [1.0] * 4)
REWARD = gaussian.QuadraticReward(torch.tensor([0.5, -0.3, 0.3, 0.1], dtype=torch.float64))


class Exact(ModelMixin, ConfigMixin):
    """The perfect denoiser of the world, in latents ``[B, 1, 2, 2]``."""

    @register_to_config
    def __init__(self, sample_size: int = 2, in_channels: int = 1):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: Tensor, timestep: Tensor, **given: Any) -> tuple[Tensor]:
        s = (timestep.double() / 1000)[:, None]
        clean, noise = gaussian.predict(BASE, hidden_states.flatten(1).double(), Level(1 - s, s))
        return ((noise - clean).view_as(hidden_states).to(hidden_states),)


def pipeline(denoiser: Any) -> DigitsPipeline:
    return DigitsPipeline(denoiser, DigitsTextEncoder(text_width=8), FlowMatchEulerDiscreteScheduler())


def drawn(count: int, seed: int, *, soft: bool) -> list[Pair]:
    """Pairs of the world's samples as images, labelled by how probably people who follow the reward prefer the first, or by one of them."""
    rng = torch.Generator().manual_seed(seed)
    x = gaussian.sample(BASE, 2 * count, rng)
    chance = torch.sigmoid(REWARD(x[::2]) - REWARD(x[1::2]))
    strength = chance if soft else (torch.rand(count, generator=rng, dtype=torch.float64) < chance).double()
    images = ((x + 1) / 2).view(-1, 1, 2, 2).float()
    return [Pair(PROMPT, images[2 * k], images[2 * k + 1], float(p), f"{seed} {k}") for k, p in enumerate(strength)]


def bayes(levels: int = 200, draws: int = 4000) -> float:
    """Accuracy, on labels of one person each, of who knows the world and sees noisy pairs at levels that are uniform in 0..1."""
    rng = torch.Generator().manual_seed(9)
    s = (torch.arange(levels, dtype=torch.float64) + 0.5)[:, None] / levels
    size, seen = REWARD.linear.square().sum(), (1 - s) ** 2 + s**2
    known = (2 * size * (1 - s) ** 2 / seen).sqrt() * torch.randn(levels, draws, generator=rng, dtype=torch.float64)
    hidden = (2 * size * s**2 / seen).sqrt() * torch.randn(levels, draws, generator=rng, dtype=torch.float64)
    return float(torch.where(known > 0, torch.sigmoid(known + hidden), torch.sigmoid(-known - hidden)).mean())


def test_it_is_near_to_bayes_and_guides_to_the_tilted_optimum(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = pipeline(DigitsTransformer(sample_size=2, patch_size=1, width=32, depth=1, heads=2, text_width=8))
    policy = mm.policies.scorer(mm.policies.noisy_latents(mm.policies.diffusers(own, memory=mm.Memory(rows_at_once=2000), device="cpu")))
    run = mm.offline(
        policy, drawn(3000, 0, soft=True), mm.methods.bradley_terry(), steps=100, batch={"records": 192, "micro_rows": 384},
        optimizer=mm.adamw(rate=5e-3, warmup=10), evaluation={"records": drawn(2000, 1, soft=False), "held_out": 2000, "every": 100},
        run={"folder": str(tmp_path), "name": "rm", "trackers": (), "checkpoint_every": 100},
    )  # fmt: skip
    best = bayes()
    assert run.summary["held_out/accuracy_after"] > 0.95 * best and run.summary["held_out/accuracy_before"] < 0.85 * best
    policy.sets.module.requires_grad_(False)
    learned = mm.rewards.on_latents(of=lambda x, prompts, level: policy.score_latents(prompts, x, level)[:, 0])
    exact, count = pipeline(Exact()), 600
    exact.set_progress_bar_config(disable=True)
    noise = torch.randn((count, 1, 2, 2), generator=torch.Generator().manual_seed(2))
    call: dict[str, Any] = {"latents": noise, "num_inference_steps": 25, "output_type": "latent"}
    plain = exact([PROMPT] * count, **call).images.flatten(1).double()
    with mm.guide(exact, learned, guidance="nrg", scale=1.0, limit=None):
        guided = exact([PROMPT] * count, **call).images.flatten(1).double()
    moved, wanted = (guided - plain).mean(0), gaussian.tilt(BASE, REWARD, beta=1.0).means[0] - BASE.means[0]
    assert float((moved - wanted).norm() / wanted.norm()) < 0.4  # noise that rows of a pair shared would lead 6 times too far
