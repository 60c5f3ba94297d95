"""Runs that follow the gradient of a reward: where they end in closed form, and what is refused before they begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.needs import ADJOINT_SIZE, MASK, STD
from mmalign.rewards._shared.scorer import Scorer
from mmalign.samplers import kernels
from mmalign.types import Feedback, UserError
from mmalign.worlds import chains, gaussian
from tests.helpers.small_run import online, path_distance

LINEAR = torch.tensor([1.0, -0.5], dtype=torch.float64)


def policy(kernel=None, *, num_steps: int = 5) -> gaussian.GaussianPolicy:
    world, levels = gaussian.one_gaussian([0.3, -0.2], [0.5, 0.8]), gaussian.flow_levels(num_steps)
    return gaussian.GaussianPolicy(world, levels, kernel=kernel or kernels.flow_sde(noise_level=2**0.5))


def linear(outputs, prompts):
    return (LINEAR * outputs).sum(-1)


def run_of(folder: Path, method, *, trained=None, rewards=None, **more):
    settings = {
        "steps": 150, "evaluation": {"every": 1000}, "batch": {"prompts": 4, "group": 16, "micro_rows": 256, "updates": 1},
        "optimizer": {"rate": 0.03, "max_norm": 1e9, "ema": 0.98}, "run": {"checkpoint_every": 1000},
    }  # fmt: skip
    trained, rewards = trained or policy(), rewards or {"r": linear}
    return online(folder, policy=trained, prompts=["a", "b"], rewards=rewards, method=method, **{**settings, **more}), trained


def best_policy(beta: float) -> gaussian.GaussianPolicy:
    best = policy()
    with torch.no_grad():
        best.parameters()["shift"].copy_(chains.path_optimum(best, LINEAR, beta=beta)[0])
    return best


def test_adjoint_matching_finds_the_optimum_of_reward_and_nats(tmp_path: Path) -> None:
    """Its fixed point on a linear chain is ``path_optimum``, all of its steps at once or two of each rollout."""
    best = best_policy(0.5)
    for name, count, steps in (("all", None, 100), ("two", 2, 150)):
        _, trained = run_of(tmp_path / name, mm.methods.adjoint_matching(beta=0.5, count=count), steps=steps)
        with trained.using("ema"):
            assert path_distance(trained, best) < 2e-3
    assert path_distance(policy(), best) > 1.0


def test_steps_with_large_adjoints_are_left_out_with_their_price() -> None:
    """By a moving average of the quantile, which a checkpoint holds."""
    method, usual = mm.methods.adjoint_matching(quantile=0.75), None
    for scale in (1.0, 3.0, 0.1):
        size = scale * torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 100.0]]).double()
        rewards, mask = torch.tensor([0.0, 1.0, float("nan")]).double(), torch.ones(3, 2, dtype=torch.bool)
        tables = {STD: torch.full((3, 2), 0.5).double(), ADJOINT_SIZE: size, MASK: mask}
        signal = method.signal(Feedback(rewards, torch.zeros(3, dtype=torch.int64), tables=tables))
        quantile = 0.5 * scale * 3.25  # of 1, 2, 3, 4: the row without a reward is not asked
        usual = quantile if usual is None else 0.9 * usual + 0.1 * quantile
        assert (
            torch.equal(signal[:2, :, 1], (0.5 * size[:2] > usual).double())
            and not bool(signal[2].any())
            and signal[:, 0, 0].tolist() == [1, 1, 0]
        )
        method.state.load(json.loads(json.dumps(method.state.dump())))


def test_where_all_adjoints_are_alike_none_is_left_out(tmp_path: Path) -> None:
    """A linear reward on one Gaussian: every row's gradient is the same, and so is the optimum that is found."""
    _, trained = run_of(tmp_path, mm.methods.adjoint_matching(beta=0.5, quantile=0.9), steps=100)
    with trained.using("ema"):
        assert path_distance(trained, best_policy(0.5)) < 2e-3


def test_draft_with_a_price_finds_it_too_and_without_one_goes_on(tmp_path: Path) -> None:
    """For a linear reward on one Gaussian the KL of later steps does not depend on earlier shifts, so that the two are one."""
    best = best_policy(0.5)
    _, held = run_of(tmp_path / "held", mm.methods.draft(last_steps=None, beta=0.5), steps=100)
    with held.using("ema"):
        assert path_distance(held, best) < 6e-3
    _, free = run_of(tmp_path / "free", mm.methods.draft(last_steps=None), steps=100)
    assert path_distance(free, best) > 1.0


def test_the_gradient_of_an_ode_is_a_run_without_any_random_step(tmp_path: Path) -> None:
    run, trained = run_of(tmp_path, mm.methods.draft(last_steps=2), trained=policy(kernels.ode()), steps=10)
    moved = trained.parameters()["shift"].detach().abs().sum(1) > 0
    assert moved.tolist() == [False, False, False, True, True]
    assert run.summary["status"] == "finished" and run.summary["r_after"] > run.summary["r_before"]


@pytest.mark.parametrize(("steps", "noise_level"), [(1, 1.0), (4, 0.0)])
def test_a_schedule_without_a_random_step_is_refused_before_anything_is_sampled(tmp_path: Path, steps: int, noise_level: float) -> None:
    schedule = {"kernel": kernels.flow_sde(noise_level=noise_level), "window": mm.windows.everything(), "steps": steps}
    of_digits = mm.policies.diffusers(mm.worlds.digits(), schedule=schedule, device="cpu")
    with pytest.raises(UserError, match=f"policy.schedule: none of {steps} steps is random, so there is nothing to train"):
        online(
            tmp_path, policy=of_digits, prompts=mm.worlds.digit_prompts(), rewards={"r": failing}, method=mm.methods.flow_grpo(), steps=1
        )


def failing(outputs, prompts):
    raise AssertionError("something was sampled")


def test_what_a_combination_makes_of_rewards_is_what_is_followed(tmp_path: Path) -> None:
    """Weights 3 and -1 of one reward are twice that reward."""
    pair, weights = {"up": linear, "down": linear}, {"up": 3.0, "down": -1.0}
    combine = mm.combinations.weighted_sum(weights=weights)
    _, both = run_of(tmp_path / "both", mm.methods.adjoint_matching(beta=1.0), rewards=pair, combine=combine, steps=20)
    _, one = run_of(tmp_path / "one", mm.methods.adjoint_matching(beta=0.5), steps=20)
    # the loss is beta times that of beta 0.5 and half the reward, so that Adam's steps are the same but for its eps
    torch.testing.assert_close(both.parameters()["shift"], one.parameters()["shift"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": {"prompts": 4, "group": 2, "epochs": 2, "updates": 1}}, "batch.epochs: got 2, batch.updates: 1; the gradient"),
        ({"batch": {"prompts": 4, "group": 2, "staleness": 1, "updates": 1}}, "batch.staleness: got 1"),
        ({"rewards": {"r": Scorer("r", linear, differentiable=False)}}, "reward r: has no gradient"),
        ({"rewards": {"r": lambda outputs, prompts: linear(outputs.detach(), prompts)}}, "reward r: its scores have no gradient"),
        ({"method": mm.methods.draft(last_steps=9)}, "method.last_steps: got 9, takes up to the 5 steps of policy.schedule"),
        ({"method": mm.methods.drtune(count=9)}, "method.count: got 9, takes up to the 5 steps"),
        ({"method": mm.methods.refl()}, "method.low, high: got 31 and 40, takes low <= high <= 5"),
        ({"trained": policy(kernels.ode()), "method": mm.methods.adjoint_matching()}, "policy.schedule: none of 5 steps is random; this"),
        ({"trained": policy(kernels.ode()), "method": mm.methods.draft(beta=0.1)}, "method.beta: a step without noise has no KL"),
        ({"combine": mm.combinations.weighted_sum(transforms={"r": mm.combinations.z_score()})}, "combine: its sum over rows depends"),
    ],
)
def test_what_cannot_learn_is_one_line(tmp_path: Path, change, message) -> None:
    method = change.pop("method", mm.methods.draft())
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        run_of(tmp_path, method, **{"steps": 2, "batch": {"prompts": 4, "group": 2, "updates": 1}, **change})
    assert not list(tmp_path.iterdir())
