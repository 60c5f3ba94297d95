"""One update against a straight line of torch, and all that must not change it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from mmalign.methods import dapo, flow_grpo, gspo
from mmalign.needs import MASK, OLD, STD, VALUE, refs
from mmalign.samplers import kernels
from mmalign.samplers.windows import everything, random_window
from mmalign.training.optimizers import adamw, sgd
from mmalign.training.settings import Reference
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.units import in_units, micro_sizes, refuse_micro_steps, refuse_mismatch
from mmalign.types import Feedback, Loss, Method, Need, Steps, UserError
from mmalign.worlds import gaussian
from mmalign.worlds.gaussian import GaussianPolicy

METHOD = flow_grpo(ratio="per_step", clip=0.05, beta=0.3, std="none", advantage_clip=None)
SIGNAL = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]


def small() -> GaussianPolicy:
    """Two parameters' worth of a policy that has moved since its rollouts."""
    window = random_window(size=2, within=(0.0, 1.0))
    return GaussianPolicy(gaussian.one_gaussian([0.7], [0.5]), gaussian.flow_levels(5), kernel=kernels.flow_sde(), window=window)


def learner(policy: GaussianPolicy, method: Method = METHOD, **changes: Any) -> Learner:
    moving, optimizer = changes.pop("moving", None), changes.pop("optimizer", None)
    return Learner(policy, method, optimizer or adamw(**{"rate": 0.01, "max_norm": 1e9, **changes}), steps=100, moving=moving)


def rollouts(policy: GaussianPolicy) -> list[Experience]:
    """Rows of two rollouts with unlike windows, and steps that are masked in some rows; the policy moves afterwards."""
    cells = []
    for seed, rows in ((0, [0, 1, 2, 5, 6]), (3, [1, 7])):
        rollout = policy.sample(["a", "b"], 4, torch.Generator().manual_seed(seed))
        rollout.mask[2] = False
        rollout.mask[5, int(torch.nonzero(rollout.mask[0]).flatten()[0])] = False
        policy.remember(rollout, ["ref"], 8)
        cells.append(Experience(rollout, SIGNAL, torch.tensor(rows)))
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=parameter.dtype)
    return cells


def gradients(policy: GaussianPolicy) -> dict[str, torch.Tensor]:
    """What an update's gradient was: SGD with rate 1 moves by it."""
    return {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}


def moved(
    cells_of: Any, *, micro_rows: int, method: Method = METHOD, micro_steps: int | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    policy = small()
    cells, taught = cells_of(policy), learner(policy, method, optimizer=sgd(rate=1.0, max_norm=1e9))
    before = gradients(policy)
    metrics = taught.update(cells, micro_rows=micro_rows, micro_steps=micro_steps, step=0)
    return {name: before[name] - value for name, value in gradients(policy).items()}, metrics


@pytest.mark.parametrize("micro_rows", [1, 2, 3, 100])
@pytest.mark.parametrize("method", [METHOD, dapo(beta=0.1)], ids=["flow_grpo", "dapo"])
def test_micro_rows_change_neither_loss_nor_gradient_nor_metrics(micro_rows: int, method: Method) -> None:
    wanted, metrics = moved(rollouts, micro_rows=5, method=method)
    got, numbers = moved(rollouts, micro_rows=micro_rows, method=method)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-13)
    assert numbers == pytest.approx(metrics, rel=1e-10) and numbers["clip_fraction"] > 0 and numbers["grad_norm"] > 0.1


@pytest.mark.parametrize("micro_steps", [1, 2, 4, 100])
def test_micro_steps_change_neither_loss_nor_gradient_nor_metrics(micro_steps: int) -> None:
    """Windows of 5 steps here, with masked cells and a signal for each step."""

    def wide(policy: GaussianPolicy) -> list[Experience]:
        policy.window = everything()
        signal = SIGNAL * torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
        return [replace(experience, signal=signal) for experience in rollouts(policy)]

    wanted, metrics = moved(wide, micro_rows=3)
    got, numbers = moved(wide, micro_rows=3, micro_steps=micro_steps)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-13)
    assert numbers == pytest.approx(metrics, rel=1e-10) and numbers["clip_fraction"] > 0


def test_no_more_than_micro_steps_are_replayed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, own = [], GaussianPolicy.steps

    def steps(self: Any, rollout: Any, rows: torch.Tensor, columns: torch.Tensor, **more: Any) -> Steps:
        seen.append(len(columns))
        return own(self, rollout, rows, columns, **more)

    monkeypatch.setattr(GaussianPolicy, "steps", steps)
    moved(rollouts, micro_rows=100, micro_steps=1)
    assert seen == [1] * 4  # two rollouts with windows of two


def test_micro_steps_are_refused_where_rows_are_seen_whole() -> None:
    refuse_micro_steps(METHOD, 2)
    refuse_micro_steps(gspo(), None)
    with pytest.raises(UserError, match="micro_steps: got 2, and this method has to see each row whole; takes null"):
        refuse_micro_steps(gspo(), 2)
    with pytest.raises(UserError, match="micro_steps: got 0, takes 1 or more"):
        refuse_micro_steps(METHOD, 0)


def test_an_update_is_the_weighted_sum_over_all_rows_of_all_rollouts() -> None:
    """By hand: sequence_mean over the rows of both rollouts that have a live cell, 6 of 7."""
    got, metrics = moved(rollouts, micro_rows=3)
    policy = small()
    total, cells = torch.zeros((), dtype=torch.float64), rollouts(policy)
    for one in cells:
        table = policy.steps(one.rollout, one.rows, None, frozenset({OLD, Need("kls")}))
        ratio, signal = (table.log_probs - table.old).exp(), one.signal[one.rows]
        values = -torch.minimum(ratio * signal, ratio.clamp(0.95, 1.05) * signal) + 0.3 * table.kls["ref"]
        for row, mask in zip(values, table.mask, strict=True):
            total = total + (row[mask].mean() / 6 if bool(mask.any()) else 0.0)
    total.backward()
    assert metrics["loss"] == pytest.approx(float(total.detach()), rel=1e-10)
    for name, parameter in policy.parameters().items():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-10, atol=1e-13)
    assert metrics["grad_norm"] == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in got.values())))


def test_gradients_that_a_model_brings_along_are_dropped() -> None:
    def stale(policy: GaussianPolicy) -> list[Experience]:
        cells = rollouts(policy)
        for parameter in policy.parameters().values():
            parameter.grad = torch.full_like(parameter, 7.0)
        return cells

    (wanted, _), (metrics, _) = moved(rollouts, micro_rows=5), moved(stale, micro_rows=5)
    assert all(torch.equal(gradient, metrics[name]) for name, gradient in wanted.items())


def test_a_signal_for_each_step_meets_its_step() -> None:
    def wide(policy: GaussianPolicy) -> list[Experience]:
        return [replace(one, signal=torch.arange(5.0, dtype=torch.float64) * one.signal) for one in rollouts(policy)]

    def loss(steps: Steps, signal: torch.Tensor) -> Loss:
        return Loss(steps.log_probs * signal, {})

    got, _ = moved(wide, micro_rows=2, method=replace(METHOD, loss=loss))
    plain, _ = moved(rollouts, micro_rows=2, method=replace(METHOD, loss=loss))
    for name in got:
        torch.testing.assert_close(got[name], torch.arange(5.0, dtype=torch.float64)[:, None] * plain[name])


def test_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    policy = small()
    cells, before = rollouts(policy), gradients(policy)
    taught = learner(policy, replace(METHOD, loss=lambda steps, signal: Loss(steps.log_probs * torch.inf, {})), ema=0.5)
    metrics = taught.update(cells, micro_rows=4, step=0)
    assert metrics["skipped"] == 1 and taught.updates == 0
    assert all(torch.equal(value, before[name]) and policy.parameters()[name].grad is None for name, value in gradients(policy).items())
    taught.method = METHOD
    assert taught.update(cells, micro_rows=4, step=0)["skipped"] == 0
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters().values())


def test_warm_up_is_linear_and_gradients_are_clipped_by_their_norm() -> None:
    policy = small()
    taught, cells = learner(policy, warmup=3), rollouts(policy)
    rates = []
    for step in range(5):
        taught.update(cells, micro_rows=8, step=step)
        rates.append(taught.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    policy = small()
    cells, taught, before = rollouts(policy), learner(policy, optimizer=sgd(rate=1.0, max_norm=0.01)), gradients(policy)
    metrics = taught.update(cells, micro_rows=8, step=0)
    change = torch.stack([(before[name] - value).norm() for name, value in gradients(policy).items()]).norm()
    assert float(change) == pytest.approx(0.01, rel=1e-4) and metrics["grad_norm"] > 0.1


def test_the_average_follows_with_a_decay_that_warms_up() -> None:
    policy = small()
    taught = learner(policy, ema=0.25)
    cells, wanted = rollouts(policy), torch.zeros(5, 1, dtype=torch.float64)
    for number in range(1, 5):
        taught.update(cells, micro_rows=8, step=0)
        decay = min(0.25, (1 + number) / (10 + number))
        wanted = decay * wanted + (1 - decay) * policy.parameters()["shift"].detach()
    torch.testing.assert_close(policy.sets.tables()["ema"]["shift"], wanted)


@pytest.mark.parametrize("unit", ["row", "pair", "group", "batch"])
def test_units_stay_whole_and_micro_batches_small(unit: Any) -> None:
    group = torch.tensor([4, 4, 1, 1, 1, 1, 0, 0])
    wanted = {"row": [3, 3, 2], "pair": [2, 2, 2, 2], "group": [2, 4, 2], "batch": [8]}
    assert micro_sizes(unit, group, 3) == wanted[unit] and micro_sizes(unit, group[:0], 3) == []
    assert sum(micro_sizes(unit, group, 100)) == 8 and len(micro_sizes(unit, group, 100)) == 1


def test_a_survey_sees_the_whole_update_whatever_the_split() -> None:
    seen = []

    def survey(steps: Steps, signal: torch.Tensor) -> torch.Tensor:
        assert not steps.log_probs.requires_grad
        seen.append(len(steps))
        mean = (steps.log_probs * steps.mask).sum(1).mean()
        return torch.stack([signal[:, 0], mean.expand(len(steps))], 1)[:, None]

    def loss(steps: Steps, signal: torch.Tensor) -> Loss:
        assert signal.shape == (len(steps), 1, 2)
        live = steps.mask.any(1)
        return Loss(steps.log_probs * (signal[..., 0] - signal[..., 1]), {"mean": signal[live, 0, 1].mean()}, live.sum())

    surveyed = replace(METHOD, loss=loss, survey=survey)
    wanted, metrics = moved(rollouts, micro_rows=100, method=surveyed)
    got, numbers = moved(rollouts, micro_rows=1, method=surveyed)
    assert seen == [5, 2, 5, 2] and numbers["mean"] == pytest.approx(metrics["mean"])
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-13)


def test_what_a_method_reads_is_there_before_its_signal() -> None:
    policy = small()
    rollout = rollouts(policy)[0].rollout
    taught = learner(policy, replace(METHOD, reads=frozenset({MASK, OLD, STD})))
    values = taught.tables(rollout, micro_rows=3)
    assert set(values) == {MASK, OLD, STD} and torch.equal(values[OLD], rollout.log_probs) and values[STD].shape == rollout.mask.shape
    assert learner(policy).tables(rollout, micro_rows=3) == {}
    with pytest.raises(UserError, match="method: needs value; this policy gives"):
        refuse_mismatch(policy, replace(METHOD, reads=frozenset({VALUE, OLD, MASK})))


def test_what_a_survey_found_stands_in_the_rows_that_it_saw() -> None:
    policy = small()
    given = rollouts(policy)[0]
    taught = learner(policy, replace(METHOD, survey=lambda steps, signal: signal + 10))
    values, wanted = taught.micro_batches.weighed([given], 2)[0][0].signal, given.signal[given.rows] + 10
    assert torch.equal(values[given.rows], wanted) and values.sum() == wanted.sum()


def test_the_rows_of_a_pair_stand_side_by_side() -> None:
    feedback = Feedback(torch.zeros(6).double(), torch.tensor([0, 1, 0, 1, 2, 2]), pairs=torch.tensor([[3, 1], [0, 2], [4, 5]]))
    inside = torch.tensor([True, True, True, True, True, False])
    assert in_units(replace(METHOD, unit="pair"), feedback, inside).tolist() == [3, 1, 0, 2]
    assert in_units(METHOD, feedback, inside).tolist() == [0, 1, 2, 3, 4]


def test_references_are_copied_anew_when_they_are_due() -> None:
    policy = small()
    method = replace(METHOD, needs=METHOD.needs | {refs("previous")})
    taught = learner(policy, method, moving={"opponent": Reference(every=2)})
    assert {move.name: move.every for move in taught.moves} == {"previous": 1, "opponent": 2} and learner(policy).moves == []
    values = []
    for step in range(4):
        taught.begin(step)
        tables = policy.sets.tables()
        values.append([float(next(iter(tables[name].values())).flatten()[0]) for name in ("previous", "opponent")])
        with torch.no_grad():
            next(iter(policy.parameters().values())).add_(1.0)
    start = values[0][0]
    assert values == [[start + a, start + b] for a, b in ((0, 0), (1, 0), (2, 2), (3, 2))]
    with pytest.raises(UserError, match=r"references\.ema: not a reference"):
        learner(policy, moving={"ema": Reference(every=1)})
    for wrong in ({"every": 0}, {"shares": {"ref": 0.5}}, {"shares": {"ref": -0.5, "current": 1.5}}, {}):
        with pytest.raises(UserError, match=r"every: got 0|shares: got|from: missing"):
            Reference(**wrong)


def test_a_soup_is_a_mixture_of_sets() -> None:
    policy = small()
    taught = learner(
        policy,
        moving={"soup": Reference(shares={"ref": 0.25, "current": 0.75}), "ref": Reference(every=2, shares={"ref": 0.5, "current": 0.5})},
    )
    first = next(iter(policy.parameters().values()))
    start = first.detach().clone()
    taught.begin(0)
    with torch.no_grad():
        first.add_(1.0)
    taught.begin(1)
    name = next(iter(policy.parameters()))
    torch.testing.assert_close(policy.sets.tables()["soup"][name], start + 0.75)
    torch.testing.assert_close(policy.sets.tables()["ref"][name], start)
    taught.begin(2)
    torch.testing.assert_close(policy.sets.tables()["ref"][name], start + 0.5)
    with pytest.raises(UserError, match=r"references\.soup\.shares: 'stranger' is no set of parameters here; takes current, ref"):
        learner(policy, moving={"soup": Reference(shares={"stranger": 1.0})}).begin(0)


def test_rollouts_of_unlike_widths_are_one_update() -> None:
    def padded(policy: GaussianPolicy) -> list[Experience]:
        """The first rollout two dead steps wider."""
        first, second = rollouts(policy)
        rollout = first.rollout
        wide = replace(rollout, mask=functional.pad(rollout.mask, (0, 2)), log_probs=functional.pad(rollout.log_probs, (0, 2)))
        return [replace(first, rollout=wide), second]

    wanted, metrics = moved(rollouts, micro_rows=3)
    got, numbers = moved(padded, micro_rows=3)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-13)
    assert numbers == pytest.approx(metrics)


def test_denoising_steps_are_learned_from_one_at_a_time_where_the_method_weighs_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, own = [], GaussianPolicy.steps

    def steps(self: Any, rollout: Any, rows: torch.Tensor, columns: torch.Tensor, **more: Any) -> Steps:
        seen.append(len(columns))
        return own(self, rollout, rows, columns, **more)

    monkeypatch.setattr(GaussianPolicy, "steps", steps)
    moved(rollouts, micro_rows=100)
    assert seen == [1] * 4
    seen.clear()
    moved(rollouts, micro_rows=100, micro_steps=2)
    assert seen == [2] * 2
