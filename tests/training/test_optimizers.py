"""Optimisers by name: each against its equations, what all of them share, and that a resumed run goes on to the last bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.runs import checkpoint
from mmalign.training.optimizer_state import flatten_optimizer, restore_optimizer
from mmalign.training.optimizers import Ema, Optimizer, adamw
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import UserError
from tests.helpers.small_run import arguments, method, policy, rows
from tests.recipes.test_online import equal, kept

KINDS: dict[str, Callable[..., Optimizer]] = {
    "adamw": lambda **more: mm.adamw(weight_decay=0.1, **more),
    "adafactor": lambda **more: mm.adafactor(weight_decay=0.1, **more),
    "adafactor_beta1": lambda **more: mm.adafactor(scale_parameter=False, beta1=0.8, **more),
    "sgd": lambda **more: mm.sgd(momentum=0.8, **more),
    "nesterov": lambda **more: mm.sgd(momentum=0.8, nesterov=True, weight_decay=0.1, **more),
    "plain_sgd": mm.sgd,
    "muon": mm.muon,
}


def steps_of(optimizer: Optimizer, *shape: int, count: int = 4) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(number from 1, gradient, parameter before, parameter after) of some updates of one parameter."""
    rng = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64))
    made = optimizer.make([parameter])
    for number in range(1, count + 1):
        parameter.grad = torch.randn(shape, generator=rng, dtype=torch.float64)
        before = parameter.detach().clone()
        made.step()
        yield number, parameter.grad, before, parameter.detach().clone()


# ---- each against its equations


def test_adamw_is_its_equations() -> None:
    mean, square = 0.0, 0.0
    for t, g, before, after in steps_of(mm.adamw(rate=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5), 3, 4):
        mean, square = 0.8 * mean + 0.2 * g, 0.9 * square + 0.1 * g**2
        wanted = before - 0.01 * (0.5 * before + mean / (1 - 0.8**t) / ((square / (1 - 0.9**t)) ** 0.5 + 1e-3))
        torch.testing.assert_close(after, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_equations(nesterov: bool) -> None:
    moving: Any = None
    for _, g, before, after in steps_of(mm.sgd(rate=0.01, momentum=0.8, nesterov=nesterov, weight_decay=0.5), 3, 4):
        g = g + 0.5 * before
        moving = g if moving is None else 0.8 * moving + g
        torch.testing.assert_close(after, before - 0.01 * (g + 0.8 * moving if nesterov else moving), rtol=1e-12, atol=1e-14)


ADAFACTORS: dict[str, dict[str, Any]] = {
    "as Diffusion-DPO": {"rate": 0.01, "scale_parameter": False, "weight_decay": 0.5},
    "by the size of the parameter": {"rate": 0.01, "decay_rate": -0.7, "weight_decay": 0.5},
    "of a small parameter": {"rate": 0.01, "eps": (1e-2, 10.0), "clip_threshold": 0.5},
    "with a mean of updates": {"rate": 0.01, "scale_parameter": False, "beta1": 0.8},
    "relative": {"relative_step": True},
    "relative, from nearly nothing": {"relative_step": True, "warmup_init": True, "weight_decay": 0.5},
}


@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 4)])
@pytest.mark.parametrize("kind", ADAFACTORS)
def test_adafactor_is_its_equations(kind: str, shape: tuple[int, ...]) -> None:
    """Algorithm 4 and 5 of arXiv 1804.04235, with eps added to squares; the last two axes are a matrix's, a vector's squares are whole."""
    given = {"clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None, "weight_decay": 0.0, "scale_parameter": True, **ADAFACTORS[kind]}
    least, smallest = given.get("eps", (1e-30, 1e-3))
    row, column, square, moving = 0.0, 0.0, 0.0, 0.0
    for t, g, before, after in steps_of(mm.adafactor(**ADAFACTORS[kind]), *shape):
        new, grown = t ** given["decay_rate"], g**2 + least
        rate = given.get("rate", min(1e-6 * t if given.get("warmup_init") else 1e-2, t**-0.5))
        if given["scale_parameter"]:
            rate = rate * max(smallest, float((before**2).mean() ** 0.5))
        if len(shape) > 1:
            row = (1 - new) * row + new * grown.mean(-1, keepdim=True)
            column = (1 - new) * column + new * grown.mean(-2, keepdim=True)
            update = g / (row * column / row.mean(-2, keepdim=True)) ** 0.5
        else:
            square = (1 - new) * square + new * grown
            update = g / square**0.5
        update = rate * update / max(1.0, float((update**2).mean() ** 0.5) / given["clip_threshold"])
        if given["beta1"] is not None:
            moving = given["beta1"] * moving + (1 - given["beta1"]) * update
            update = moving
        torch.testing.assert_close(after, before - given["weight_decay"] * rate * before - update, rtol=1e-10, atol=1e-12)


def test_muon_makes_the_momentum_orthogonal() -> None:
    """Five steps of Newton-Schulz in bfloat16 leave singular values between 0.7 and 1.2 (Jordan et al. 2024)."""
    moving = torch.zeros(6, 3, dtype=torch.float64)
    for _, g, before, after in steps_of(mm.muon(rate=0.01, momentum=0.9, weight_decay=0.5), 6, 3):
        moving = 0.9 * moving + 0.1 * g
        left, _, right = torch.linalg.svd(0.1 * g + 0.9 * moving, full_matrices=False)
        update = (before * (1 - 0.01 * 0.5) - after) / (0.01 * 0.2 * 6**0.5)
        singular = torch.linalg.svdvals(update)
        assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3
        assert float((update * (left @ right)).sum() / (update.norm() * (left @ right).norm())) > 0.97


def test_muon_is_refused_where_a_parameter_is_no_matrix() -> None:
    matrix, vector, kernel = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (3,), (2, 3, 1, 1)))
    mm.muon().make([matrix])
    with pytest.raises(UserError, match=r"^optimizer: muon takes matrices, got 2 of other shapes, such as \[3\]; takes LoRA, or adamw$"):
        mm.muon().make([matrix, vector, kernel])


def test_8_bits_are_refused_in_a_line_where_torchao_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    chosen = mm.adamw_8bit(rate=1e-3)  # a config may be read where it does not run
    with pytest.raises(UserError, match=r"^optimizer: adamw_8bit needs the package torchao, which is not installed \(\S+eight_bit\]\)$"):
        chosen.make([torch.nn.Parameter(torch.zeros(2, 2))])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: mm.adamw(betas=(0.9, 1.0)), r"adamw.betas: got \[0.9, 1.0\], takes a number from 0 to below 1"),
        (lambda: mm.adamw_8bit(eps=-1.0), "adamw_8bit.eps: got -1.0, takes 0 or more"),
        (lambda: mm.adafactor(rate=-1.0), "adafactor.rate: got -1.0, takes a number above 0"),
        (lambda: mm.adafactor(clip_threshold=0.0), "adafactor.clip_threshold: got 0.0, takes a number above 0"),
        (lambda: mm.adafactor(warmup_init=True), "warmup_init: got true without relative_step, .*"),
        (lambda: mm.adafactor(relative_step=True, rate=1e-3), "rate: given beside relative_step, .*"),
        (lambda: mm.adafactor(relative_step=True, decay="cosine"), "decay: given beside relative_step, .*"),
        (lambda: mm.sgd(nesterov=True), "nesterov: got true without momentum, takes momentum above 0"),
        (lambda: mm.muon(momentum=-0.1), "muon.momentum: got -0.1, takes a number from 0 to below 1"),
        (lambda: mm.adamw(warmup=-1), "adamw.warmup: got -1, takes 0 or more"),
        (lambda: mm.adamw(ema=1.0), "adamw.ema: got 1.0, takes a number from 0 to below 1"),
        (lambda: adamw(rate=0.0), "rate: got 0.0, takes a number above 0"),
        (lambda: mm.adamw(max_norm=0.0), "adamw.max_norm: got 0.0, takes a number above 0"),
        (lambda: adamw(max_norm=float("nan")), "max_norm: got nan, takes a number above 0"),
        (lambda: Ema(1.5), "decay: got 1.5, takes a number from 0 to below 1"),
        (lambda: Ema(0.5, every=0), "every: got 0, takes 1 or more"),
    ],
)
def test_numbers_outside_their_range_are_refused(make: Callable[[], Any], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        make()


# ---- what all of them share


def test_the_rate_warms_up_and_decays() -> None:
    def rates(**changes: Any) -> list[float]:
        chosen = mm.sgd(rate=0.8, **changes)
        return [chosen.rate_at(step, 4) for step in range(6)]

    assert rates() == [0.8] * 6
    assert rates(warmup=3) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert rates(decay="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    half = 0.5**0.5 / 2
    assert rates(decay="cosine") == pytest.approx([0.8, 0.8 * (0.5 + half), 0.4, 0.8 * (0.5 - half), 0.0, 0.0])
    assert rates(decay="linear", warmup=1) == pytest.approx([0.4, 0.6, 0.4, 0.2, 0.0, 0.0])


def taught(optimizer: Optimizer) -> tuple[Learner, Any]:
    """A learner of 8 steps, and an update of it."""
    learner = Learner(policy(), method(), optimizer, steps=8)
    rollout = learner.policy.sample(["a", "b"], 4, torch.Generator().manual_seed(0))
    learner.policy.remember(rollout, ["ref"], 8)
    experience = Experience(rollout, torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None], torch.arange(8))
    return learner, lambda step: learner.update([experience], micro_rows=8, step=step)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimiser_steps_at_the_rate_of_its_step(kind: str) -> None:
    learner, update = taught(KINDS[kind](rate=0.08, warmup=1, decay="linear", max_norm=1e9))
    for step, rate in enumerate([0.04, 0.07, 0.06]):
        before = {name: value.detach().clone() for name, value in learner.policy.parameters().items()}
        update(step)
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert all(not torch.equal(value, before[name]) for name, value in learner.policy.parameters().items())


def test_the_average_is_renewed_every_so_many_updates() -> None:
    learner, update = taught(mm.sgd(rate=0.1, ema=Ema(0.4, every=3)))
    wanted = learner.policy.parameters()["shift"].detach().clone()
    for number in range(1, 8):
        update(0)
        if number in (3, 6):
            decay = min(0.4, (1 + number) / (10 + number))  # 4/13, and 0.4
            wanted = decay * wanted + (1 - decay) * learner.policy.parameters()["shift"].detach()
        torch.testing.assert_close(learner.policy.sets.tables()["ema"]["shift"], wanted, rtol=1e-12, atol=1e-14)
    assert not torch.equal(wanted, learner.policy.parameters()["shift"])


# ---- resume


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    def run(folder: str, **changes: Any) -> Any:
        given = arguments(tmp_path / folder, **changes)
        return mm.online(**{**given, "optimizer": KINDS[kind](rate=0.02, warmup=4, ema=Ema(0.9, every=2))})

    straight = run("straight")
    run("parts", steps=3)
    parts = run("parts", resume=True)
    assert rows(parts.path) == rows(straight.path)
    assert equal(kept(parts.path, 6), kept(straight.path, 6))
    assert equal(parts.policy.sets.tables(), straight.policy.sets.tables())


def test_relative_steps_have_no_rate_to_show_and_go_on_to_the_last_bit(tmp_path: Path) -> None:
    def run(folder: str, **changes: Any) -> Any:
        given = arguments(tmp_path / folder, **changes)
        return mm.online(**{**given, "optimizer": mm.adafactor(relative_step=True, warmup_init=True)})

    straight = run("straight")
    run("parts", steps=3)
    parts = run("parts", resume=True)
    assert rows(parts.path) == rows(straight.path)
    assert equal(parts.policy.sets.tables(), straight.policy.sets.tables())
    assert all(row.get("lr") is None for row in rows(straight.path))
    assert any(not torch.equal(value, parts.policy.sets.tables()["ref"][name]) for name, value in parts.policy.parameters().items())


def test_8_bits_go_on_to_the_last_bit(tmp_path: Path) -> None:
    pytest.importorskip("torchao")

    def started() -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
        rng = torch.Generator().manual_seed(0)
        named = {"large": torch.nn.Parameter(torch.randn(64, 64, generator=rng)), "small": torch.nn.Parameter(torch.ones(3))}
        return named, mm.adamw_8bit(rate=0.01, weight_decay=0.1).make(named.values())

    def train(named: dict[str, Tensor], optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            for parameter in named.values():
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    with torch.compiler.set_stance("force_eager"):  # compiling takes a minute
        straight, optimizer = started()
        train(straight, optimizer, range(3))
        tensors, state = flatten_optimizer(optimizer, straight)
        assert tensors["exp_avg.codes/large"].dtype == torch.uint8 and tensors["exp_avg/small"].dtype == torch.float32
        weights = {name: parameter.detach() for name, parameter in straight.items()}
        path = checkpoint.save(tmp_path, 3, tensors={"trained": weights, "optimizer": tensors}, state={"optimizer": state})
        train(straight, optimizer, range(3, 6))

        resumed, fresh = started()
        loaded, saved = checkpoint.load(path)
        with torch.no_grad():
            for name, parameter in resumed.items():
                parameter.copy_(loaded["trained"][name])
        restore_optimizer(fresh, resumed, loaded["optimizer"], saved["optimizer"])
        train(resumed, fresh, range(3, 6))
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    assert equal(flatten_optimizer(fresh, resumed), flatten_optimizer(optimizer, straight))
