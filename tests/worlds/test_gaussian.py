"""The closed-form world against quadrature, autograd and simulation, and its policy against a known optimum."""

from __future__ import annotations

import pytest
import torch

from mmalign.needs import DT, OLD, STD, kls
from mmalign.samplers import kernels, windows
from mmalign.types import Level, Need, UserError
from mmalign.worlds import chains, gaussian
from mmalign.worlds.gaussian import GaussianPolicy, Mixture, QuadraticReward

EVERYTHING_NEEDED = frozenset({OLD, Need("refs"), Need("kls"), STD, DT})


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_humps() -> Mixture:
    return Mixture(row(0.3, 0.7), torch.stack([row(-1.0, 0.5), row(1.5, -0.5)]), torch.stack([row(0.3, 0.6), row(0.5, 0.2)]))


def grid() -> tuple[torch.Tensor, float]:
    """Points and the area of a cell, for integrals in the plane."""
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The denoiser


@pytest.mark.parametrize("level", [(0.4, 0.6), (0.8, 0.6), (1.0, 3.0), (0.05, 0.95)])
def test_denoiser_is_the_score_of_the_marginal(level: tuple[float, float]) -> None:
    """Tweedie: E[eps | x] = -b grad ln p_t(x), and x = a E[x_0] + b E[eps]."""
    t = Level(*row(*level))
    x = torch.randn(6, 2, generator=rng(), dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(gaussian.log_density(gaussian.marginal(two_humps(), t), x).sum(), x)
    got = gaussian.predict(two_humps(), x.detach(), t)
    torch.testing.assert_close(got.noise, -t.noise * score)
    torch.testing.assert_close(t.signal * got.clean + t.noise * got.noise, x.detach())


def test_denoiser_at_the_ends() -> None:
    x = torch.randn(4, 2, generator=rng(), dtype=torch.float64)
    noise, data = (gaussian.predict(two_humps(), x, Level(*row(*level))) for level in ((0.0, 1.0), (1.0, 0.0)))
    torch.testing.assert_close(noise.clean, (two_humps().weights @ two_humps().means).expand(4, 2))
    torch.testing.assert_close(noise.noise, x)
    torch.testing.assert_close(data.clean, x)
    assert not data.noise.any()


def test_samples_have_the_moments_of_the_density() -> None:
    points, area = grid()
    density = gaussian.log_density(two_humps(), points).exp() * area
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    draws = gaussian.sample(two_humps(), 40000, rng())
    torch.testing.assert_close(draws.mean(0), density @ points, rtol=0, atol=0.02)
    torch.testing.assert_close((draws**2).mean(0), density @ points**2, rtol=0, atol=0.05)


# The tilted optimum


@pytest.mark.parametrize("curvature", [row(0.0, 0.0), row(0.8, 0.1), row(-0.3, 0.0)])
def test_tilt_and_kl_against_quadrature(curvature: torch.Tensor) -> None:
    base, reward, beta = two_humps(), QuadraticReward(row(0.5, -1.0), curvature), 0.7
    points, area = grid()
    p = gaussian.log_density(base, points)
    tilted = p + reward(points) / beta
    log_z = torch.logsumexp(tilted, 0) + torch.tensor(area).log()
    optimum = gaussian.tilt(base, reward, beta=beta)
    torch.testing.assert_close(gaussian.log_density(optimum, points)[::500], (tilted - log_z)[::500], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gaussian.log_normaliser(base, reward, beta=beta), log_z, rtol=1e-5, atol=1e-5)
    q = (tilted - log_z).exp() * area
    torch.testing.assert_close(gaussian.kl(optimum, base), (q * (tilted - log_z - p)).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reward.mean(optimum), q @ reward(points), rtol=1e-5, atol=1e-5)
    value = reward.mean(optimum) - beta * gaussian.kl(optimum, base)
    torch.testing.assert_close(value, beta * gaussian.log_normaliser(base, reward, beta=beta))


# The policy


def small_policy(kernel: kernels.Kernel | None = None, num_steps: int = 5, **more: object) -> GaussianPolicy:
    world = gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5])
    return GaussianPolicy(world, gaussian.flow_levels(num_steps), kernel=kernel or kernels.flow_sde(), **more)  # type: ignore[arg-type]


def test_a_rollout_replays_to_itself() -> None:
    policy = GaussianPolicy(two_humps(), gaussian.flow_levels(6), kernel=kernels.flow_sde())
    rollout = policy.sample(["a", "b"], 3, rng())
    assert rollout.prompts == ["a"] * 3 + ["b"] * 3 and rollout.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert rollout.mask.tolist() == [[True] * 5 + [False]] * 6 and not rollout.log_probs[:, -1].any()
    policy.remember(rollout, ["ref"], 2)
    rows, columns = torch.tensor([4, 1]), torch.tensor([3, 0])
    table = policy.steps(rollout, rows, columns, EVERYTHING_NEEDED)
    torch.testing.assert_close(table.log_probs, rollout.log_probs[rows[:, None], columns], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(table.refs["ref"], table.log_probs.detach())
    assert not table.kls["ref"].any() and table.event_size == 2 and table.kind == "transition"
    torch.testing.assert_close(table.facts["dt"], torch.full((2, 2), -1 / 6, dtype=torch.float64))
    assert float(table.facts["std"][0, 1]) == pytest.approx(0.7)
    assert policy.steps(rollout, rows).old is None and not policy.steps(rollout, rows).facts


def test_parameter_sets() -> None:
    policy = small_policy()
    rollout = policy.sample(["a"], 4, rng())
    everyone = torch.arange(4)
    with torch.no_grad():
        policy.parameters()["shift"] += 0.5
    policy.sets.keep("previous")
    policy.remember(rollout, ["ref", "previous"], 4)
    table = policy.steps(rollout, everyone, None, frozenset({Need("refs"), kls("ref"), kls("previous")}))
    torch.testing.assert_close(table.refs["ref"], rollout.log_probs)
    torch.testing.assert_close(table.refs["previous"], table.log_probs.detach())
    assert bool((table.kls["ref"][:, :-1] > 0).all()) and not table.kls["previous"].any()
    with policy.using("ref"):
        torch.testing.assert_close(policy.steps(rollout, everyone).log_probs, rollout.log_probs)
    policy.sets.follow("ema", decay=0.5)
    with policy.using("ema"):
        torch.testing.assert_close(policy.steps(rollout, everyone).log_probs, table.log_probs)
    assert set(policy.sets.tables()) == {"trained", "ref", "previous", "ema"}
    for ask in (
        lambda: policy.remember(rollout, ["opponent"], 4),
        lambda: policy.steps(rollout, everyone, None, frozenset({kls("opponent")})),
    ):
        with pytest.raises(UserError, match="got 'opponent'"):
            ask()


def test_a_window_is_asked_with_the_training_step() -> None:
    steps_told: list[int] = []

    def window(num_steps: int, step: int, generator: torch.Generator) -> torch.Tensor:
        steps_told.append(step)
        return torch.arange(num_steps) == step

    policy = small_policy(window=window)
    for step in (3, 1):
        assert policy.sample(["a"], 2, rng(), step=step).mask.tolist() == [[i == step for i in range(5)]] * 2
    assert steps_told == [3, 1]


def test_generate_follows_the_ode_from_one_seed_for_each_prompt() -> None:
    policy = small_policy(num_steps=200)
    outputs = policy.generate(["a"] * 500, list(range(500)))
    torch.testing.assert_close(outputs[[7, 3]], policy.generate(["b", "a"], [7, 3]))
    torch.testing.assert_close(outputs.mean(0), row(0.7, -0.3), rtol=0, atol=0.15)
    torch.testing.assert_close(outputs.var(0), row(0.5, 1.5), rtol=0.2, atol=0)
    with pytest.raises(UserError, match="got guidance_scale, takes nothing"):
        policy.generate(["a"], [0], guidance_scale=2.0)


def test_log_probs_and_kl_have_the_gradients_of_finite_differences() -> None:
    policy = small_policy()
    rollout = policy.sample(["a"], 3, rng())
    policy.remember(rollout, ["ref"], 3)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng(1), dtype=torch.float64)

    def value() -> torch.Tensor:
        table = policy.steps(rollout, torch.arange(3), None, frozenset({Need("kls")}))
        return (table.log_probs + table.kls["ref"]).sum()

    value().backward()
    for parameter in policy.parameters().values():
        for place in ((0, 1), (3, 0)):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[place] += step
                    ends.append(float(value()))
                    parameter[place] -= step
            assert float(parameter.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("kernel", [kernels.flow_sde(), kernels.dance_sde(), kernels.cps(), kernels.ddim()])
def test_simulated_moments_are_those_of_the_chain(kernel: kernels.Kernel) -> None:
    policy = small_policy(kernel)
    rollout = policy.sample(["a"], 20000, rng())
    with torch.no_grad():
        steps = chains.chain(policy, windows.all_but_last()(5, 0, rng()))
    means, variances = chains.propagate(*steps, row(0.0, 0.0), row(1.0, 1.0))
    states = rollout.held.states
    torch.testing.assert_close(states.mean(0), means, rtol=0, atol=0.04)
    torch.testing.assert_close(states.var(0), variances, rtol=0.05, atol=0)


@pytest.mark.parametrize("kernel", [kernels.flow_sde(), kernels.ddim(), kernels.cps()])
def test_path_optimum_is_where_the_exact_objective_is_flat(kernel: kernels.Kernel) -> None:
    policy, linear, beta = small_policy(kernel), row(1.0, -0.5), 0.4
    shifts, value = chains.path_optimum(policy, linear, beta=beta)
    stochastic = windows.all_but_last()(5, 0, rng())
    with torch.no_grad(), policy.using("ref"):
        _, base, stds = chains.chain(policy, stochastic)

    def objective() -> torch.Tensor:
        gains, offsets, _ = chains.chain(policy, stochastic)
        means, _ = chains.propagate(gains, offsets, stds, row(0.0, 0.0), row(1.0, 1.0))
        cost = kernels.kl(offsets[:-1], stds[:-1], base[:-1], stds[:-1]).sum()
        return linear @ means[-1] - beta * cost

    before = objective().detach()
    with torch.no_grad():
        policy.parameters()["shift"].copy_(shifts)
    after = objective()
    after.backward()
    torch.testing.assert_close((after - before).detach(), value)
    torch.testing.assert_close(policy.parameters()["shift"].grad[:-1], torch.zeros_like(shifts[:-1]))  # type: ignore[index]
    assert float(value) > 0.1 and not shifts[-1].any()


@pytest.mark.parametrize("kernel", [kernels.flow_sde(), kernels.ddim()])
def test_policy_gradient_with_exact_kl_finds_the_optimum(kernel: kernels.Kernel) -> None:
    policy, linear, beta = small_policy(kernel, num_steps=4), row(1.0, -0.5), 0.5
    reward, wanted = QuadraticReward(linear), chains.path_optimum(small_policy(kernel, num_steps=4), linear, beta=beta)[0]
    shift = policy.parameters()["shift"]
    optimiser = torch.optim.Adam([shift], lr=0.05)
    tail, generator = torch.zeros_like(wanted), rng(3)
    for update in range(300):
        rollout = policy.sample(["a"], 512, generator)
        policy.remember(rollout, ["ref"], 512)
        rewards = reward(rollout.outputs)
        table = policy.steps(rollout, torch.arange(512), None, frozenset({Need("kls")}))
        # E[r] - beta * KL of the path: reward-to-go of the later KL is constant for shifts, so that this gradient is exact.
        loss = (-(rewards - rewards.mean())[:, None] * table.log_probs + beta * table.kls["ref"]).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - update / 300)
        tail += shift.detach() / 100 if update >= 200 else 0
    torch.testing.assert_close(tail, wanted, rtol=0.08, atol=0.08)
    assert float((tail - wanted).norm() / wanted.norm()) < 0.05


def test_bad_input_is_one_line() -> None:
    with pytest.raises(UserError, match="Mixture: got weights"):
        Mixture(row(1.0), row(0.0), row(1.0))
    with pytest.raises(UserError, match="weights that sum to 1"):
        Mixture(row(0.5), row(0.0)[None], row(1.0)[None])
    with pytest.raises(UserError, match=r"tilt\.beta: got 0\.1"):
        gaussian.tilt(two_humps(), QuadraticReward(row(0.0, 0.0), row(-1.0, 0.0)), beta=0.1)
    with pytest.raises(UserError, match="got a mixture of 2"):
        chains.chain(GaussianPolicy(two_humps(), gaussian.flow_levels(3), kernel=kernels.ode()), torch.ones(3, dtype=torch.bool))
