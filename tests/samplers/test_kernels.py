"""Kernels against straight-line formulas, against each other, and against the world in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmalign.samplers import kernels
from mmalign.types import Level, Prediction, UserError
from mmalign.worlds import chains, gaussian

SCHEDULES = {
    "flow": gaussian.flow_levels(10),
    "flow_shift_3": gaussian.flow_levels(10, shift=3.0),
    "vp": gaussian.vp_levels(10),
    "vp_from_pure_noise": gaussian.vp_levels(10, start=1.0),
    "ve": gaussian.ve_levels(10),
    "diffusers_shift_3": (lambda s: Level(1 - s, s))(torch.tensor([1.0, 0.96, 0.465, 0.278, 0.0089, 0.0], dtype=torch.float64)),
}
KERNELS = {
    "ode": kernels.ode(),
    "ddim": kernels.ddim(),
    "ddim_half": kernels.ddim(eta=0.5),
    "cps": kernels.cps(),
    "flow_sde": kernels.flow_sde(),
    "flow_sde_clamped": kernels.flow_sde(first=0.99),
    "flow_sde_to_the_end": kernels.flow_sde(last="noise"),
    "dance_sde": kernels.dance_sde(),
    "dance_sde_to_the_end": kernels.dance_sde(last="noise"),
}


def pairs(levels: Level) -> list[tuple[Level, Level]]:
    return list(pairwise(Level(a, b) for a, b in zip(*levels, strict=True)))


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flow_step(kernel: kernels.Kernel, x: torch.Tensor, v: torch.Tensor, s: float, s_next: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A kernel on the rectified flow, from its velocity."""
    t, t_next = (Level(torch.tensor(1 - at, dtype=x.dtype), torch.tensor(at, dtype=x.dtype)) for at in (s, s_next))
    return kernel(kernels.predict(v, x, t, parametrisation="flow"), x, t, t_next)


# Straight-line formulas, on the rectified flow as published


@pytest.mark.parametrize("s, s_next", [(1.0, 0.9), (0.9, 0.75), (0.5, 0.45), (0.2, 0.01)])
@pytest.mark.parametrize("noise_level", [0.0, 0.7, 1.3])
def test_flow_sde_is_the_published_formula(s: float, s_next: float, noise_level: float) -> None:
    x, v, dt = draw(0, 3, 5), draw(1, 3, 5), s_next - s
    sigma = noise_level * math.sqrt(s / (1 - (s_next if s == 1 else s)))
    mean = x * (1 + sigma**2 / (2 * s) * dt) + v * (1 + sigma**2 * (1 - s) / (2 * s)) * dt
    got_mean, got_std = flow_step(kernels.flow_sde(noise_level=noise_level), x, v, s, s_next)
    torch.testing.assert_close(got_mean, mean, rtol=1e-12, atol=1e-12)
    assert float(got_std) == pytest.approx(sigma * math.sqrt(-dt), rel=1e-12)


@pytest.mark.parametrize("s, s_next", [(1.0, 0.9), (0.9, 0.75), (0.5, 0.45), (0.2, 0.01)])
def test_dance_sde_is_the_published_formula(s: float, s_next: float) -> None:
    x, v, dt, eta = draw(0, 3, 5), draw(1, 3, 5), s_next - s, 0.3
    score = -(x - (1 - s) * (x - s * v)) / s**2
    mean = x + v * dt - 0.5 * eta**2 * score * dt
    got_mean, got_std = flow_step(kernels.dance_sde(noise_level=eta), x, v, s, s_next)
    torch.testing.assert_close(got_mean, mean, rtol=1e-12, atol=1e-12)
    assert float(got_std) == pytest.approx(eta * math.sqrt(-dt), rel=1e-12)


@pytest.mark.parametrize("s, s_next", [(0.9, 0.75), (0.5, 0.45), (0.2, 0.01)])
def test_dance_sde_is_flow_sde_with_a_constant_std(s: float, s_next: float) -> None:
    x, v = draw(0, 3, 5), draw(1, 3, 5)
    dance = flow_step(kernels.dance_sde(noise_level=0.3), x, v, s, s_next)
    flow = flow_step(kernels.flow_sde(noise_level=0.3 / math.sqrt(s / (1 - s))), x, v, s, s_next)
    for got, wanted in zip(dance, flow, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("s, s_next", [(1.0, 0.9), (0.5, 0.45), (0.1, 0.0)])
def test_cps_is_the_published_formula(s: float, s_next: float) -> None:
    x, v = draw(0, 3, 5), draw(1, 3, 5)
    std = s_next * math.sin(0.8 * math.pi / 2)
    mean = (1 - s_next) * (x - s * v) + math.sqrt(s_next**2 - std**2) * (x + (1 - s) * v)
    got_mean, got_std = flow_step(kernels.cps(noise_level=0.8), x, v, s, s_next)
    torch.testing.assert_close(got_mean, mean, rtol=1e-12, atol=1e-12)
    assert float(got_std) == pytest.approx(std, abs=1e-15)


@pytest.mark.parametrize("abar, abar_next", [(0.0047, 0.02), (0.3, 0.5), (0.99, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_published_formula(abar: float, abar_next: float, eta: float) -> None:
    x, eps = draw(0, 3, 5), draw(1, 3, 5)
    std = eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
    mean = math.sqrt(abar_next) * (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar) + math.sqrt(1 - abar_next - std**2) * eps
    t, t_next = (Level(torch.tensor(at).double().sqrt(), (1 - torch.tensor(at).double()).sqrt()) for at in (abar, abar_next))
    got_mean, got_std = kernels.ddim(eta=eta)(kernels.predict(eps, x, t, parametrisation="epsilon"), x, t, t_next)
    torch.testing.assert_close(got_mean, mean, rtol=1e-6, atol=1e-6)  # the levels are rounded from float32 abar
    assert float(got_std) == pytest.approx(std, rel=1e-5, abs=1e-9)


def test_ode_is_eulers_method_on_the_flow() -> None:
    x, v = draw(0, 3, 5), draw(1, 3, 5)
    mean, std = flow_step(kernels.ode(), x, v, 0.6, 0.35)
    torch.testing.assert_close(mean, x - 0.25 * v)
    assert float(std) == 0


# First and last step


def test_first_step_of_flow_sde_has_named_choices() -> None:
    x, v = draw(0, 3, 5), draw(1, 3, 5)
    s_next = 3 * 0.9 / (1 + 2 * 0.9)
    _, following = flow_step(kernels.flow_sde(noise_level=0.7), x, v, 1.0, s_next)
    mean, clamped = flow_step(kernels.flow_sde(noise_level=0.7, first=0.99), x, v, 1.0, s_next)
    assert float(following) == pytest.approx(0.7)  # g^2 h = 0.7^2 * h / (1 - s') and h = 1 - s'
    assert float(clamped) == pytest.approx(0.7 * math.sqrt((1 - s_next) / 0.01))
    # The substitute stands in std alone: the drift divides by 2 s with s = 1.
    torch.testing.assert_close(mean, x + (v + clamped**2 / (1 - s_next) / 2 * x) * (s_next - 1))


def test_last_step_has_named_choices() -> None:
    x, v = draw(0, 3, 5), draw(1, 3, 5)
    mean, std = flow_step(kernels.flow_sde(), x, v, 0.25, 0.0)
    torch.testing.assert_close(mean, x - 0.25 * v)
    assert float(std) == 0
    for kernel, left in ((kernels.flow_sde(last="noise"), 0.218), (kernels.dance_sde(last="noise"), 0.157)):
        # What an exact state keeps of its noise, in visual.md 2.0 (9): the drift's part and the fresh part together.
        drift, std = flow_step(kernel, torch.ones(1, 1).double(), torch.ones(1, 1).double() / 0.25, 0.25, 0.0)
        assert math.hypot(float(drift) * 0.25, float(std)) == pytest.approx(left, abs=5e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("parametrisation", ["epsilon", "sample", "v_prediction", "flow"])
def test_every_step_is_finite_with_its_gradient(name: str, schedule: str, parametrisation: kernels.Parametrisation) -> None:
    same = [(Level(a, b), Level(a, b)) for a, b in zip(*SCHEDULES[schedule], strict=True)]
    for t, t_next in pairs(SCHEDULES[schedule]) + same:
        x, output = draw(0, 2, 3, dtype=torch.float32), draw(1, 2, 3, dtype=torch.float32).requires_grad_()
        mean, std = KERNELS[name](kernels.predict(output, x, t, parametrisation=parametrisation), x, t, t_next)
        assert mean.dtype == torch.float32 and std.dtype == torch.float32
        value = kernels.log_prob(kernels.sample(mean, std, draw(2, 2, 3, dtype=torch.float32)), mean, std)
        distance = kernels.kl(mean, std, draw(3, 2, 3), std)
        (value + distance).sum().backward()
        for tensor in (mean, std, value, distance, output.grad):
            assert tensor is not None and bool(tensor.isfinite().all())
        if float(std) == 0:
            assert not value.any() and not distance.any() and not output.grad.any()


# Schedules and parametrisations


@pytest.mark.parametrize("schedule", ["vp", "vp_from_pure_noise", "ve", "flow_shift_3"])
@pytest.mark.parametrize("name", KERNELS)
def test_schedules_agree_after_rescaling(name: str, schedule: str) -> None:
    """A path divided by (a + b) is a rectified flow: a step there, scaled back, is the step here."""
    clean, noise = draw(0, 3, 5), draw(1, 3, 5)
    for t, t_next in pairs(SCHEDULES[schedule]):
        mean, std = KERNELS[name](Prediction(clean, noise), t.signal * clean + t.noise * noise, t, t_next)
        flow, flow_next = (Level(at.signal / sum(at), at.noise / sum(at)) for at in (t, t_next))
        y = flow.signal * clean + flow.noise * noise
        flow_mean, flow_std = KERNELS[name](Prediction(clean, noise), y, flow, flow_next)
        torch.testing.assert_close(mean, flow_mean * sum(t_next), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(std, flow_std * sum(t_next), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_parametrisations_agree(schedule: str) -> None:
    clean, noise = draw(0, 3, 5), draw(1, 3, 5)
    for t, _ in pairs(SCHEDULES[schedule]):
        a, b = t
        x = a * clean + b * noise
        outputs = {"epsilon": noise, "sample": clean, "v_prediction": a * noise - b * clean, "flow": noise - clean}
        for name, output in outputs.items():
            got = kernels.predict(output, x, t, parametrisation=name)  # type: ignore[arg-type]
            if name == "epsilon" and a < 1e-9:
                assert not got.clean.any() or a > 0  # no finite estimate: 0, as documented
                continue
            torch.testing.assert_close(got.clean, clean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(got.noise, noise, rtol=1e-9, atol=1e-9)


def test_one_level_for_each_row() -> None:
    levels = SCHEDULES["flow"]
    x, v = draw(0, 4, 3, 2, 2), draw(1, 4, 3, 2, 2)
    for name, kernel in KERNELS.items():
        t, t_next = (Level(*(level[start : start + 4].reshape(4, 1, 1, 1) for level in levels)) for start in (0, 1))
        mean, std = kernel(kernels.predict(v, x, t, parametrisation="flow"), x, t, t_next)
        for row, (at, following) in enumerate(pairs(levels)[:4]):
            one = slice(row, row + 1)
            wanted, wanted_std = kernel(kernels.predict(v[one], x[one], at, parametrisation="flow"), x[one], at, following)
            torch.testing.assert_close(mean[one], wanted, msg=name)
            torch.testing.assert_close(std[row].squeeze(), wanted_std, msg=name)


def test_half_precision_is_widened() -> None:
    x, t = draw(0, 2, 3).bfloat16(), Level(torch.tensor(0.3), torch.tensor(0.7))
    assert kernels.predict(x, x, t, parametrisation="flow").clean.dtype == torch.float32


# Log-probability and KL


def test_log_prob_is_the_normal_density_summed() -> None:
    x, mean, std = draw(0, 3, 4, 5), draw(1, 3, 4, 5), draw(2, 3, 1, 1).exp()
    torch.testing.assert_close(kernels.log_prob(x, mean, std), Normal(mean, std).log_prob(x).sum((1, 2)), rtol=1e-13, atol=1e-13)


def test_log_prob_in_float32_is_good_to_a_tenth_of_a_millinat() -> None:
    x, mean, std = draw(0, 2, 65536), draw(1, 2, 65536), torch.tensor(0.37).double()
    x, mean = x.float(), x.float() + 0.37 * mean.float()
    got = kernels.log_prob(x, mean, std.float())
    assert got.dtype == torch.float64
    z = (x.double() - mean.double()) / std.float().double()
    wanted = (-0.5 * z**2 - std.float().double().log() - 0.5 * math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    again = kernels.log_prob(x, mean + 1e-4, std.float()) - got  # a difference, which is what methods use
    z_again = (x.double() - (mean + 1e-4).double()) / std.float().double()
    torch.testing.assert_close(again, (0.5 * z**2 - 0.5 * z_again**2).sum(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 64, 64), (1024, 64)])
def test_a_row_does_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    """To the last bit, so that recorded and replayed log-probabilities are equal whatever the micro-batch."""
    x, mean, std = draw(0, 8, *shape).float(), draw(1, 8, *shape).float(), torch.tensor(0.3)
    alone = torch.cat([kernels.log_prob(x[row : row + 1], mean[row : row + 1], std) for row in range(8)])
    assert torch.equal(kernels.log_prob(x, mean, std), alone)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 2, 1, 0)])
def test_a_row_does_not_depend_on_how_its_memory_is_laid_out(order: tuple[int, ...]) -> None:
    """To the last bit: a denoiser answers channels last, or frames inside of the batch, and what was recorded of it is laid out anew."""
    x, mean, std = draw(0, 16, 7, 33, 65), draw(1, 16, 7, 33, 65), torch.tensor(0.3)  # float64, in which sums of float32 are often exact
    back = torch.tensor(order).argsort().tolist()
    other = mean.permute(order).contiguous().permute(back)
    assert torch.equal(other, mean) and other.stride() != mean.stride()
    for ours in (x, x.permute(order).contiguous().permute(back)):
        assert torch.equal(kernels.log_prob(ours, other, std), kernels.log_prob(x, mean, std))
        assert torch.equal(kernels.kl(ours, std, other, std), kernels.kl(x, std, mean, std))


def test_log_prob_has_no_gradient_through_the_sample() -> None:
    mean = draw(0, 2, 3).requires_grad_()
    std = torch.tensor(0.5).double()
    x_next = kernels.sample(mean, std, draw(1, 2, 3))
    kernels.log_prob(x_next, mean, std).sum().backward()
    torch.testing.assert_close(mean.grad, (x_next - mean).detach() / 0.25)


def test_kl_is_that_of_normals_summed() -> None:
    mean, mean_ref = draw(0, 3, 4), draw(1, 3, 4)
    std, std_ref = draw(2, 3, 1).exp(), draw(3, 3, 1).exp()
    wanted = kl_divergence(Normal(mean, std), Normal(mean_ref, std_ref)).sum(1)
    torch.testing.assert_close(kernels.kl(mean, std, mean_ref, std_ref), wanted, rtol=1e-12, atol=1e-12)
    assert not kernels.kl(mean, std, mean, std).any()


def test_kl_sends_gradients_to_both_sides_of_the_right_size() -> None:
    mean, std, mean_ref = draw(0, 3, 4).requires_grad_(), torch.tensor(0.3, dtype=torch.float64), draw(1, 3, 4)
    kernels.kl(mean, std, mean_ref, std).sum().backward()
    torch.testing.assert_close(mean.grad, ((mean - mean_ref) / 0.09).detach())
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    kernels.kl(mean_ref, scale, mean_ref, std).sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor(12 * (0.4 / 0.09 - 1 / 0.4), dtype=torch.float64))


def test_rows_without_noise_add_nothing_and_stop_gradients() -> None:
    mean, std = draw(0, 2, 3).requires_grad_(), torch.tensor([[0.0], [0.5]], dtype=torch.float64, requires_grad=True)
    value = kernels.log_prob(draw(1, 2, 3), mean, std) + kernels.kl(mean, std, draw(2, 2, 3), std.detach() + 0.1)
    value.sum().backward()
    assert value.bool().tolist() == [False, True]
    for grad in (mean.grad, std.grad):
        assert grad is not None and not grad[0].any() and bool(grad[1].all()) and bool(grad.isfinite().all())


# Against the closed-form world


def test_noise_after_one_step_from_an_exact_state() -> None:
    """visual.md 2.0 (10): shift 3, 10 steps. The clean image is known, so all that can be wrong is the amount of noise."""
    excess = {}
    for name in ("flow_sde", "dance_sde", "cps", "ddim"):
        steps = []
        for t, t_next in pairs(SCHEDULES["flow_shift_3"])[:-1]:
            zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
            weight, std = KERNELS[name](Prediction(zero, one), t.noise * one, t, t_next)
            steps.append(math.hypot(float(weight), float(std)) - float(t_next.noise))
        excess[name] = steps
    assert min(excess["flow_sde"]) == pytest.approx(0.014, abs=5e-4) and max(excess["flow_sde"]) == pytest.approx(0.059, abs=5e-4)
    assert min(excess["dance_sde"]) > 0 and max(excess["dance_sde"]) == pytest.approx(0.014, abs=5e-4)
    assert max(map(abs, excess["cps"])) < 1e-12 and max(map(abs, excess["ddim"])) < 1e-12


def final_error(kernel: kernels.Kernel, levels: Level) -> float:
    """How far the variance at the end of a chain from the exact marginal is from the data's, relative to it."""
    world = gaussian.one_gaussian([0.7], [0.5])
    policy = gaussian.GaussianPolicy(world, levels, kernel=kernel)
    start = gaussian.marginal(world, Level(levels.signal[0], levels.noise[0]))
    with torch.no_grad():
        steps = chains.chain(policy, torch.ones(policy.num_steps, dtype=torch.bool))
    means, variances = chains.propagate(*steps, start.means[0], start.variances[0])
    assert float(means[-1]) == pytest.approx(0.7, abs=1e-9)  # every kernel keeps the mean, at any number of steps
    return float(variances[-1]) / 0.5 - 1


@pytest.mark.parametrize("make", [gaussian.flow_levels, gaussian.vp_levels, gaussian.ve_levels])
@pytest.mark.parametrize("name", ["ode", "ddim", "dance_sde"])
def test_chain_converges_to_the_data_at_first_order(name: str, make: object) -> None:
    coarse, fine = (final_error(KERNELS[name], make(num_steps)) for num_steps in (400, 800))  # type: ignore[operator]
    assert abs(fine) < 0.02 and coarse / fine == pytest.approx(2, abs=0.1)


def test_flow_sde_converges_at_first_order_away_from_pure_noise() -> None:
    def make(num_steps: int) -> Level:
        s = torch.linspace(0.9, 0, num_steps + 1, dtype=torch.float64)
        return Level(1 - s, s)

    for schedule in (make, gaussian.ve_levels):
        coarse, fine = (final_error(kernels.flow_sde(), schedule(num_steps)) for num_steps in (400, 800))
        assert abs(fine) < 0.02 and coarse / fine == pytest.approx(2, abs=0.1)


def test_flow_sde_from_pure_noise_converges_at_a_lower_order() -> None:
    """g^2 h is no smaller in the first steps when they are many, and is forgotten as h^(noise_level^2): order .49, seen from afar."""
    coarse, fine = (final_error(kernels.flow_sde(), gaussian.flow_levels(num_steps)) for num_steps in (1000, 2000))
    assert 0 < fine < 0.004 and 1.25 < coarse / fine < 2**0.49


@pytest.mark.parametrize("noise_level", [0.3, 0.8])
def test_cps_shrinks_the_data_by_a_known_factor(noise_level: float) -> None:
    """Exact for a point; data with a spread loses variance however many steps are taken: (1 + cos(noise_level pi / 2)) / 2 is left."""
    left = (1 + math.cos(noise_level * math.pi / 2)) / 2
    coarse, fine = (1 + final_error(kernels.cps(noise_level=noise_level), gaussian.flow_levels(n)) - left for n in (1000, 2000))
    assert abs(fine) < 0.01 and abs(fine) < 0.7 * abs(coarse)


# Bad input


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: kernels.cps(noise_level=1.1), r"cps\.noise_level: got 1\.1, takes a number from 0 to 1"),
        (lambda: kernels.ddim(eta=-0.1), r"ddim\.eta: got -0\.1, takes a number from 0 to 1"),
        (lambda: kernels.flow_sde(noise_level=float("nan")), r"flow_sde\.noise_level: got nan, takes a number from 0 to 1e\+06"),
        (lambda: kernels.flow_sde(noise_level=1e300), r"flow_sde\.noise_level: got 1e\+300, takes a number from 0 to 1e\+06"),
        (lambda: kernels.dance_sde(noise_level=10**400), r"dance_sde\.noise_level: got 10+, takes a number from 0 to 1e\+06"),
        (lambda: kernels.dance_sde(noise_level="high"), r"dance_sde\.noise_level: got 'high'"),  # type: ignore[arg-type]
        (lambda: kernels.flow_sde(first="clamp"), r"flow_sde\.first: got 'clamp', takes 'next' or a number"),  # type: ignore[arg-type]
        (lambda: kernels.flow_sde(first=1.0), r"flow_sde\.first: got 1\.0"),
        (lambda: kernels.dance_sde(last="drop"), r"dance_sde\.last: got 'drop', takes 'ode' or 'noise'"),  # type: ignore[arg-type]
        (lambda: kernels.predict(*[torch.ones(1, 1)] * 2, Level(*[torch.ones(())] * 2), parametrisation="x0"), "parametrisation: got 'x0'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_one_line(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]
