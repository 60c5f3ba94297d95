"""A video that a pipeline makes in chunks, each of which goes on from those before, as one rollout."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.policies.twins import pipelines as twins
from mmalign.samplers import kernels, windows
from mmalign.samplers.adjoints import RewardGradient, last
from mmalign.types import UserError

STEPS = 3


@pytest.fixture(scope="module", params=["inverted_anti_drifting", "vanilla"])
def policy(request):
    pipe = twins.twin("HunyuanVideoFramepackPipeline")
    call = {**twins.call_arguments(pipe), "latent_window_size": 2, "num_frames": 10, "sampling_type": request.param}
    schedule = mm.Schedule(steps=STEPS, kernel=kernels.flow_sde(noise_level=0.7), window=windows.all_but_last())
    return mm.policies.diffusers(pipe, schedule=schedule, call=call, device="cpu", lora=mm.Lora(rank=2), memory=mm.Memory(rows_at_once=1))


def test_two_chunks_are_one_rollout(policy):
    """Every chunk has the window's steps, is played again to the last bit, and goes on from what the one before became."""
    rollout = policy.sample(["a fox"], 2, torch.Generator().manual_seed(0))
    held = rollout.held
    assert held.chunk.tolist() == [0] * STEPS + [1] * STEPS and held.chunks == 2
    assert rollout.mask.tolist() == [[True, True, False] * 2] * 2
    assert policy.random_steps(["a fox"]).tolist() == [True, True, False] * 2
    whole = policy.steps(rollout, torch.arange(2), needs=frozenset({mm.needs.DT}))
    live = rollout.mask[:, held.columns]
    assert torch.equal(whole.log_probs[live], whole.old[live])
    assert torch.allclose(whole.facts["dt"][:, :2], whole.facts["dt"][:, 2:])
    whole.log_probs[:, -1].sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in policy.parameters().values())
    other = policy.steps(rollout.take(torch.tensor([1])), torch.arange(1))
    assert torch.equal(other.log_probs[0], whole.log_probs[1])
    held.x_next[STEPS - 1, 0] += 1.0
    moved = policy.steps(rollout, torch.arange(2))
    assert torch.equal(moved.log_probs[0, :2], whole.log_probs[0, :2]) and not torch.equal(moved.log_probs[0, 2:], whole.log_probs[0, 2:])


def test_policy_gradients_train_it(policy, tmp_path):
    run = mm.online(
        policy, prompts=["a fox", "a hare"], rewards={"bright": lambda outputs, prompts: outputs.flatten(1).mean(1)},
        method=mm.methods.flow_grpo(ratio="per_step"), steps=1, batch={"prompts": 2, "group": 2},
        evaluation={"every": 1, "samples": 1}, run={"folder": str(tmp_path), "name": "chunks", "trackers": ()},
    )  # fmt: skip
    assert run.summary["preflight_difference"] == 0.0 and run.summary["steps"] == 1


def test_what_has_to_see_chunks_behind_each_other_is_one_line(policy):
    rollout, rng = policy.sample(["a fox"], 1, torch.Generator().manual_seed(0)), torch.Generator()
    ask = lambda how: policy.adjoints(rollout, how, lambda outputs, rows: outputs.flatten(1).sum(1), rng, rows_at_once=1)  # noqa: E731
    with pytest.raises(UserError, match="takes policy gradients"):
        ask(mm.methods.dmd2().reward_gradient)
    with pytest.raises(UserError, match=f"takes its steps, the last {STEPS}"):
        ask(RewardGradient(last(STEPS + 1), lambda rewards: rewards))
    made = ask(RewardGradient(last(1), lambda rewards: rewards)).held.adjoints
    assert [one.column for one in made] == [2 * STEPS - 1] and float(made[0].vector.abs().max()) > 0
    with pytest.raises(UserError, match="each of its own latents"):
        policy.latents(rollout)
