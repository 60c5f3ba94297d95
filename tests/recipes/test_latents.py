"""Rewards of latents: nothing is decoded for them, and they score what outputs are decoded from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.policies.pipelines.rollouts.replay import decoded
from mmalign.policies.twins import pipelines
from mmalign.types import UserError
from tests.helpers.small_run import online

PROMPTS = ["a fox", "a hen"]


def energy(latents: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return -latents.flatten(1).square().mean(1)


def twin_policy() -> tuple[Any, dict[str, int]]:
    """A twin of SD3, and how often its VAE is asked for what."""
    pipe, counts = pipelines.twin("StableDiffusion3Pipeline"), {"decode": 0, "encode": 0}

    def counting(name: str) -> Any:
        own = getattr(pipe.vae, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return own(*args, **kwargs)

        return call

    for name in counts:
        setattr(pipe.vae, name, counting(name))
    call = {"height": 32, "width": 32, "max_sequence_length": 8}
    return mm.policies.diffusers(pipe, schedule={"steps": 3}, call=call, lora={"rank": 2}), counts


def run_of(folder: Path, policy: Any, rewards: dict[str, Any], method: Any = None, **more: Any) -> Any:
    batch = {"prompts": 2, "group": 4, "updates": 1}
    rows = {"every": 1, "samples": 2, "call": {"num_inference_steps": 2}}
    method = method or mm.methods.flow_grpo(beta=0.1)
    return online(folder, policy=policy, prompts=PROMPTS, rewards=rewards, method=method, steps=1, batch=batch, evaluation=rows, **more)


def test_a_rollout_decodes_nothing_and_scores_what_would_be_decoded(tmp_path: Path) -> None:
    policy, counts = twin_policy()
    rollout = policy.sample(PROMPTS, 2, torch.Generator().manual_seed(0), decode=False)
    assert counts == {"decode": 0, "encode": 0}
    whole = policy.sample(PROMPTS, 2, torch.Generator().manual_seed(0))
    assert counts["decode"] == 1
    assert torch.equal(policy.latents(rollout), policy.latents(whole)) and torch.equal(rollout.log_probs, whole.log_probs)
    with torch.no_grad():
        torch.testing.assert_close(decoded(policy, rollout, torch.arange(4), policy.latents(rollout)), whole.outputs)
    counts["decode"] = 0
    run = run_of(tmp_path, policy, {"energy": mm.rewards.on_latents(of=energy)})
    assert counts == {"decode": 2, "encode": 0}  # one for each evaluation
    assert run.summary["energy_before"] < 0 and run.summary["preflight_difference"] == 0


def test_evaluations_score_the_latents_of_what_they_show() -> None:
    policy, _ = twin_policy()
    policy.rows_at_once = 1
    outputs, latents = policy.generated(PROMPTS, [3, 4], num_inference_steps=2)
    assert torch.equal(outputs, policy.generate(PROMPTS, [3, 4], num_inference_steps=2))
    scaled = latents / policy.pipe.vae.config.scaling_factor + policy.pipe.vae.config.shift_factor
    with torch.no_grad():
        pixels = policy.pipe.vae.decode(scaled, return_dict=False)[0]
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1), outputs, rtol=1e-4, atol=1e-5)


def test_rewards_of_both_kinds_stand_side_by_side(tmp_path: Path) -> None:
    policy, counts = twin_policy()
    seen: list[tuple[str, tuple[int, ...]]] = []

    def bright(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(("outputs", tuple(outputs.shape[1:])))
        return outputs.flatten(1).mean(1)

    def watched(latents: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(("latents", tuple(latents.shape[1:])))
        return energy(latents, prompts)

    run_of(tmp_path, policy, {"bright": bright, "energy": mm.rewards.on_latents(of=watched)})
    assert set(seen) == {("outputs", (3, 32, 32)), ("latents", (4, 16, 16))} and counts["decode"] == 3


def test_denoising_errors_are_of_the_latents_as_they_were_sampled(tmp_path: Path) -> None:
    inner, counts = twin_policy()
    policy = mm.policies.forward(inner)
    run_of(tmp_path, policy, {"energy": mm.rewards.on_latents(of=energy)}, mm.methods.awm())
    assert counts == {"decode": 2, "encode": 0}
    rollout = policy.sample(PROMPTS, 2, torch.Generator().manual_seed(0), decode=False)
    with_vae = policy.sample(PROMPTS, 2, torch.Generator().manual_seed(0))
    assert policy.latents(rollout).shape == policy.latents(with_vae).shape and counts["encode"] == 1


def test_gradients_do_not_pass_through_the_decoder(tmp_path: Path) -> None:
    policy, counts = twin_policy()
    run = run_of(tmp_path, policy, {"energy": mm.rewards.on_latents(of=energy)}, mm.methods.draft(last_steps=1))
    assert counts == {"decode": 2, "encode": 0} and run.summary["status"] == "finished"


def test_in_pixel_space_the_gradient_is_that_of_the_same_reward_of_pixels() -> None:
    policy = mm.policies.diffusers(mm.worlds.digits(), schedule={"steps": 3})
    rollout = policy.sample(["digit two", "digit six"], 2, torch.Generator().manual_seed(0))
    how, vectors = mm.methods.draft(last_steps=2).reward_gradient, []

    def of_pixels(outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return outputs.square().flatten(1).sum(1)

    def of_latents(outputs: None, rows: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        assert outputs is None
        return of_pixels((latents / 2 + 0.5).clamp(0, 1), rows)

    for utility, more in ((of_pixels, {}), (of_latents, {"latents": True, "decode": False})):
        carried = policy.adjoints(rollout, how, utility, torch.Generator().manual_seed(1), rows_at_once=4, **more)
        vectors.append(torch.stack([adjoint.vector for adjoint in carried.held.adjoints]))
    torch.testing.assert_close(*vectors)
    assert bool((vectors[0] != 0).any())


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    reward = mm.rewards.on_latents(of=energy)
    with pytest.raises(UserError, match="reward r: scores latents, and GaussianPolicy has none; takes a policy of diffusers"):
        online(tmp_path, rewards={"r": reward})
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"guide: on_latents scores latents"), mm.guide(mm.worlds.digits(), reward):
        pass
    with pytest.raises(UserError, match=r"combined\.rewards: some score latents and some outputs"):
        mm.rewards.combined(rewards={"a": reward, "b": energy})
    assert mm.rewards.combined(rewards={"a": reward}).of_latents and mm.rewards.time_limit(reward=reward, seconds=9).of_latents
    with pytest.raises(UserError, match=r"frames\.of: got Scorer"):
        mm.rewards.frames(of=reward)
    with pytest.raises(UserError, match=r"on_latents\.of: got str"):
        mm.rewards.on_latents(of="energy")  # type: ignore[arg-type]
