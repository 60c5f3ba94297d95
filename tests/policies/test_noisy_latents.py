"""A reward model of noisy latents: what a denoiser holds of them, at any level; trained, and shown latents in runs and in guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.policies.twins import pipelines
from mmalign.records import Pair
from mmalign.samplers import kernels
from mmalign.types import Level, UserError

PROMPTS = ["a handwritten seven", "a handwritten two"]


def denoiser(**settings: Any) -> Any:
    return mm.policies.diffusers(mm.worlds.digits(denoiser="dit"), device="cpu", **settings)


def scorer(**settings: Any) -> Any:
    policy = mm.policies.scorer(mm.policies.noisy_latents(denoiser(), **settings))
    with torch.no_grad():
        policy.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return policy


def images(count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_features_are_the_states_behind_the_last_block_at_the_level_that_is_asked_for() -> None:
    policy = scorer()
    pipe, x = policy.reader.of.pipe, 2 * images() - 1
    states = list[torch.Tensor]()
    hook = pipe.transformer.blocks[-1].register_forward_hook(lambda module, given, output: states.append(output))
    condition = pipe.encode_prompt(PROMPTS, torch.device("cpu"))
    pipe.transformer(hidden_states=x, timestep=torch.tensor([400.0, 400.0]), pooled_projections=condition)
    hook.remove()
    mean = states[0].mean(1)
    wanted = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    got = policy.reader.at(PROMPTS, x, Level(torch.tensor(0.6), torch.tensor(0.4)))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    several = policy.reader.at(PROMPTS, x, Level(torch.tensor([0.6, 0.1]), torch.tensor([0.4, 0.9])))
    torch.testing.assert_close(several[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(several[1], wanted[1], atol=1e-2)
    twice = policy.reader.at(PROMPTS, 2 * x, Level(torch.tensor(1.2), torch.tensor(0.8)))  # the same place on another scale
    torch.testing.assert_close(twice, got, rtol=1e-4, atol=1e-5)


def test_rows_of_a_record_share_their_level_and_each_has_its_own_noise() -> None:
    policy, same = scorer(), images(1).expand(4, -1, -1, -1)
    group, rows = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    scores = policy.of_rows(policy.encode([PROMPTS[0]] * 4, same, group, torch.Generator().manual_seed(0)), rows)[:, 0].tolist()
    held = policy.encode([PROMPTS[0]] * 4, same, group, torch.Generator().manual_seed(0)).held
    assert held.places[held.which, 0].unique().numel() == 2 and bool(held.places[0] == held.places[1])
    assert len({round(score, 4) for score in scores}) == 4
    part = policy.encode([PROMPTS[0]] * 4, same, group, torch.Generator().manual_seed(0), part=slice(2, 4))
    assert policy.of_rows(part, torch.arange(2))[:, 0].tolist() == pytest.approx(scores[2:], abs=1e-5)
    clean = policy.score([PROMPTS[0]] * 2, same[:2])
    torch.testing.assert_close(policy.score_latents([PROMPTS[0]] * 2, 2 * same[:2] - 1, None), clean, rtol=1e-4, atol=1e-4)


def test_layers_behind_the_one_that_is_read_are_not_trained() -> None:
    last, second = scorer(), scorer(layer="blocks.1")
    assert last.reader.layer == "blocks.3" and not any(name.startswith(("patch_out", "modulation_out")) for name in last.parameters())
    assert not any(name.startswith(("blocks.2", "blocks.3")) for name in second.parameters())
    rows = torch.arange(2)
    second.of_rows(second.encode(PROMPTS, images(), rows, torch.Generator()), rows).sum().backward()
    assert all(parameter.grad is not None for parameter in second.parameters().values())


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline", "LTXPipeline"])
def test_pipelines_of_all_kinds_are_read(name: str) -> None:
    pipe = pipelines.twin(name)
    call = {key: value for key, value in pipelines.call_arguments(pipe).items() if key not in ("prompt", "num_inference_steps")}
    of = mm.policies.diffusers(pipe, call=call, lora={"rank": 2}, device="cpu")
    policy = mm.policies.scorer(mm.policies.noisy_latents(of))
    outputs = of.generate(["a fox", "a cat"], [0, 1], num_inference_steps=1)
    torch.nn.init.ones_(policy.head.weight[:, :3])
    rollout = policy.encode(["a fox", "a cat"], outputs, torch.arange(2), torch.Generator().manual_seed(0))
    policy.of_rows(rollout, torch.arange(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters().values())


def bright() -> list[Pair]:
    """Whose brighter image is the better one."""
    some = images(64, seed=3) * torch.linspace(0.2, 1.0, 64)[:, None, None, None]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).view(-1, 2).tolist()
    return [Pair(PROMPTS[0], some[a], some[b], float(some[a].mean() > some[b].mean()), f"{a} {b}") for a, b in order]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {"folder": str(tmp_path_factory.mktemp("runs")), "name": "rm", "trackers": (), "checkpoint_every": 40}
    return mm.offline(
        mm.policies.scorer(mm.policies.noisy_latents(denoiser())), bright()[:24], mm.methods.bradley_terry(), steps=40,
        batch={"records": 24}, optimizer=mm.adamw(rate=3e-3), evaluation={"records": bright()[24:], "every": 40}, run=settings,
    )  # fmt: skip


def test_a_run_scores_outputs_and_latents_with_a_gradient(run: Any) -> None:
    assert run.summary["held_out/loss_after"] < run.summary["held_out/loss_before"]
    reward = mm.rewards.trained(str(run.path))
    latents = mm.rewards.on_latents(of=reward)
    assert reward.differentiable and latents.differentiable and latents.of_latents and not reward.of_latents
    outputs = images().requires_grad_()
    x = (2 * images() - 1).requires_grad_()
    torch.testing.assert_close(reward(outputs, PROMPTS), latents(x, PROMPTS), rtol=1e-4, atol=1e-4)
    of_outputs, of_latents = (torch.autograd.grad(f(at, PROMPTS).sum(), at)[0] for f, at in ((reward, outputs), (latents, x)))
    torch.testing.assert_close(of_outputs, 2 * of_latents, rtol=1e-3, atol=1e-5)
    assert bool((of_latents.flatten(1).sum(1) > 0).all())  # brighter is better
    with pytest.raises(UserError, match=r"latents: got \[1, 4, 4\] of a row, the reward model reads \[1, 8, 8\]"):
        latents(x[..., :4, :4], PROMPTS)
    with pytest.raises(UserError, match=r"on_latents\.of: jpeg scores outputs; takes a function of latents, or trained"):
        mm.rewards.on_latents(of=mm.rewards.jpeg())


def test_nrg_shows_it_the_latents_of_each_step_with_their_level(run: Any) -> None:
    pipe, latents = mm.worlds.digits(denoiser="dit"), mm.rewards.on_latents(of=mm.rewards.trained(str(run.path)))
    call: dict[str, Any] = {"num_inference_steps": 4, "output_type": "pt"}
    noise = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    plain = pipe([PROMPTS[0]] * 4, latents=noise, **call).images
    with mm.guide(pipe, latents, guidance="nrg", scale=3.0) as guided:
        moved = pipe([PROMPTS[0]] * 4, latents=noise, **call).images
    assert float(moved.mean()) > float(plain.mean()) and guided.ledger.reward_gradients == 12 and guided.ledger.failed == 0
    with pytest.raises(UserError, match="guide: trained scores outputs, and nrg shows rewards latents; takes on_latents"):
        mm.guide(pipe, mm.rewards.trained(str(run.path)), guidance="nrg").__enter__()


def test_a_run_that_is_rewarded_by_it_decodes_nothing(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = denoiser(schedule=mm.Schedule(steps=3, kernel=kernels.flow_sde(noise_level=0.7)))
    seen, own = list[Any](), policy.pipe.image_processor.postprocess
    monkeypatch.setattr(policy.pipe.image_processor, "postprocess", lambda *given, **more: seen.append(1) or own(*given, **more))
    settings = {"folder": str(tmp_path), "name": "online", "trackers": (), "checkpoint_every": 1}
    learned = mm.rewards.on_latents(of=mm.rewards.trained(str(run.path)))
    before = len(seen)
    mm.online(
        policy, prompts=PROMPTS, method=mm.methods.flow_grpo(), rewards={"learned": learned}, steps=1,
        batch={"prompts": 2, "group": 3}, evaluation={"every": 9, "samples": 1}, run=settings,
    )  # fmt: skip
    assert len(seen) - before == 2  # those that evaluations show, before and after


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("block.3", r"policy\.of\.layer: got 'block\.3', DigitsTransformer has patch_in, time, text, blocks"),
        ("time", r"policy\.of\.layer: time of DigitsTransformer has no hidden states of each row; takes a block of the denoiser"),
    ],
)
def test_a_layer_without_hidden_states_is_one_line(layer: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        scorer(layer=layer)


def test_words_are_no_latents() -> None:
    with pytest.raises(UserError, match=r"policy\.of: noisy_latents reads images and videos, got str"):
        scorer().score(PROMPTS, ["some", "words"])
