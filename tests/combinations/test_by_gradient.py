"""Weights that follow the policy gradients of rewards: the inner products against straight lines, and what is made of them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.combinations.by_gradient import shortest
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.training.evaluations.inner_products import InnerProducts
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback, Method, Rollout, UserError
from mmalign.worlds.tabular.policy import TabularPolicy, tabular

SCORES = {"a": [1.0, 0.0, 3.0, 2.0, 5.0, 4.0, 4.0, 1.0], "b": [0.0, 2.0, 1.0, 1.0, 0.5, 1.0, 0.0, 3.0], "c": [2.0] * 8}


def given() -> tuple[TabularPolicy, Rollout, Feedback]:
    policy = tabular(start=torch.randn(11, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist())
    rollout = policy.sample(["0,0", "1,2"], 4, torch.Generator().manual_seed(2))
    policy.remember(rollout, ["ref"])
    parts = {name: torch.tensor(values, dtype=torch.float64) for name, values in SCORES.items()}
    return policy, rollout, Feedback(parts["a"] + parts["b"], rollout.group, parts=parts)


def told(method: Method, *, micro_rows: int = 8, **combination: Any) -> tuple[list[str], Tensor]:
    """What a combination is told of these rows."""
    policy, rollout, feedback = given()
    with torch.no_grad():
        policy.parameters()["logits"][:, 0] += 0.3  # away from the reference, so that a KL has a gradient
    combine = mm.combinations.gradient_weights(weights={"a": 1.0, "b": 1.0, "c": 1.0}, by="gradients", **combination)
    found: list[Any] = []
    combine.gradients.follow = lambda names, inner: found.extend((names, inner))
    learner = Learner(policy, method, mm.adamw(), steps=1)
    experience = Experience(rollout, method.signal(feedback), torch.arange(8))
    InnerProducts(learner, combine).tell(feedback, experience, ["0,0", "1,2"], lambda act, largest: act(micro_rows))
    return found[0], found[1]


def straight() -> Tensor:
    """``g_k = mean_i sum_t A_ik grad log pi_it``, by the softmax's own gradient; ``[K, K]`` inner products."""
    policy, rollout, _ = given()
    with torch.no_grad():
        policy.parameters()["logits"][:, 0] += 0.3
    pi, gradients = policy.log_probs().detach().exp(), []
    for values in SCORES.values():
        gradient = torch.zeros(11, 4, dtype=torch.float64)
        for row in range(8):
            mates = [values[other] for other in range(8) if rollout.group[other] == rollout.group[row] and other != row]
            advantage = values[row] - sum(mates) / 3
            for t in torch.nonzero(rollout.mask[row]).flatten().tolist():
                state, action = int(rollout.held.states[row, t]), int(rollout.held.actions[row, t])
                ratio = math.exp(float(pi[state, action].log()) - float(rollout.log_probs[row, t]))
                gradient[state] -= advantage * ratio * pi[state] / 8
                gradient[state, action] += advantage * ratio / 8
        gradients.append(gradient.flatten())
    table = torch.stack(gradients)
    return table @ table.T


def method(beta: float = 0.0) -> Method:
    """RLOO's advantages, a sum over steps, an unclipped ratio of single steps; a KL in the loss where there is a beta."""
    return policy_gradient(
        advantage=lambda feedback: advantages.leave_one_out(feedback.rewards, feedback.group),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped,
        weigh=partial(weights.constant_length, length=1.0),
        penalty=penalties.named("k3", beta=beta) if beta else None,
    )


def test_inner_products_are_those_of_each_rewards_gradient() -> None:
    names, inner = told(method())
    assert names == ["a", "b", "c"]
    torch.testing.assert_close(inner, straight(), rtol=1e-10, atol=1e-12)
    assert float(inner[2].abs().max()) < 1e-12  # one reward for all teaches nothing


def test_the_split_and_a_price_change_nothing() -> None:
    whole = told(method())[1]
    torch.testing.assert_close(told(method(), micro_rows=4)[1], whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(told(method(beta=0.5))[1], whole, rtol=1e-10, atol=1e-12)
    scaled = told(method(), transforms={"a": mm.combinations.affine(scale=2.0)})[1]
    torch.testing.assert_close(scaled[0, 1], 2 * whole[0, 1])


def test_the_shortest_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        g = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        found = shortest(g @ g.T)
        assert float(found.sum()) == pytest.approx(1) and float(found.min()) >= 0
        shares = torch.cartesian_prod(torch.linspace(0, 1, 101), torch.linspace(0, 1, 101)).double()
        shares = torch.cat([shares, 1 - shares.sum(1, keepdim=True)], 1)
        shares = shares[shares[:, 2] >= 0]
        best = (shares @ g).square().sum(1).min()
        assert float((found @ g).square().sum()) <= float(best) + 1e-3 * float(g.square().sum())
        first, second = g[0], g[1]
        gamma = float(((second - first) @ second / (second - first).square().sum()).clamp(0, 1))
        assert shortest(g[:2] @ g[:2].T).tolist() == pytest.approx([gamma, 1 - gamma], abs=1e-9)


def test_weights_climb_by_the_target_alone_and_pay_for_their_size() -> None:
    by = mm.combinations.bilevel_weights(weights={"a": 1.0, "b": 2.0, "c": -1.0}, target="a", rate=0.1, price=0.5, least=-1.2)
    by.gradients.follow(["a", "b", "c"], torch.tensor([[9.0, 3.0, -4.0], [3.0, 70.0, 80.0], [-4.0, 80.0, 90.0]], dtype=torch.float64))
    assert by.gradients.values == pytest.approx({"a": 1.0, "b": 2 + 0.1 * (3 - 0.5 * 2), "c": -1.2})
    with pytest.raises(UserError, match="takes a target that has a weight"):
        mm.combinations.bilevel_weights(weights={"a": 1.0}, target="z")


def test_a_run_moves_its_weights_resumes_them_and_refuses_methods_of_pairs(tmp_path: Path) -> None:
    rewards = {"a": mm.worlds.tabular_return(), "b": mm.worlds.tabular_return(reward="tokens")}

    def run(name: str, steps: int, **more: Any) -> dict[str, float]:
        combine = mm.combinations.gradient_weights(weights={"a": 1.0, "b": 1.0}, rate=5.0, by="gradients")
        settings: dict[str, Any] = {"batch": {"prompts": 1, "group": 8}, "evaluation": {"every": 100, "samples": 1}}
        where = {"folder": str(tmp_path), "name": name, "trackers": (), "checkpoint_every": 2}
        chosen, optimizer = more.pop("method", mm.methods.rloo()), mm.adamw(rate=0.1)
        mm.online(tabular(), ["0,0"], rewards, chosen, combine=combine, steps=steps, optimizer=optimizer, run=where, **settings, **more)
        return dict(combine.gradients.values)

    straight_on = run("whole", 4)
    assert straight_on != {"a": 1.0, "b": 1.0} and sum(straight_on.values()) == pytest.approx(2)
    run("parts", 2)
    assert run("parts", 4, resume=True) == straight_on
    with pytest.raises(UserError, match="takes a method of single rows"):
        run("pairs", 1, method=mm.methods.online_dpo())
