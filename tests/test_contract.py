"""One table of tests that every method in mmalign/methods passes. It finds the methods, and their oracles, by itself.

A new method needs a case in the ``ORACLES`` of a file in tests/oracles, and nothing here.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import mmalign.methods
from mmalign.types import Feedback, Method, Steps, UserError
from tests.oracles.tables import COLUMNS, ROWS, Table, table

HERE = Path(__file__).parent
FOLDER = Path(next(iter(mmalign.methods.__path__)))
FILES = sorted(path for path in FOLDER.rglob("*.py") if path.name != "__init__.py")


def _published(path: Path) -> dict[str, Callable[..., Method]]:
    """The public functions that a method file defines."""
    module = importlib.import_module(".".join(("mmalign", "methods", *path.relative_to(FOLDER).with_suffix("").parts)))
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: function for name, function in functions if function.__module__ == module.__name__ and not name.startswith("_")}


def _oracles() -> tuple[dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]], set[str]]:
    cases: dict[str, Any] = {}
    gaussian: set[str] = set()
    for path in sorted((HERE / "oracles").glob("*.py")):
        module = importlib.import_module(f"tests.oracles.{path.stem}")
        cases.update(vars(module).get("ORACLES", {}))
        gaussian |= vars(module).get("GAUSSIAN", set())
    return cases, gaussian


METHODS = {name: function for path in FILES for name, function in _published(path).items()}
ORACLES, GAUSSIAN = _oracles()


class Case(NamedTuple):
    """A method with hyper-parameters, on one kind of steps."""

    name: str
    kwargs: dict[str, Any]
    oracle: Callable[..., Tensor]
    kind: Any

    @property
    def method(self) -> Method:
        return METHODS[self.name](**self.kwargs)


def _cases() -> Iterable[Any]:
    for name, cases in ORACLES.items():
        for number, (kwargs, oracle) in enumerate(cases):
            for kind in sorted(METHODS[name](**kwargs).kinds) if name in METHODS else ():
                if kind != "token" or not GAUSSIAN & {str(value) for value in kwargs.values()}:
                    yield pytest.param(Case(name, kwargs, oracle, kind), id=f"{name}-{number}-{kind}")


every_case = pytest.mark.parametrize("case", list(_cases()))


def _close(got: Tensor, wanted: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-14)


def _loss(method: Method, steps: Steps, feedback: Feedback) -> tuple[Tensor, dict[str, Tensor]]:
    loss = method.loss(steps, method.signal(feedback))
    return (method.weigh(steps.mask) * loss.values).sum(), loss.metrics


def _columns(steps: Steps, columns: Tensor) -> Steps:
    pick: Callable[[Any], dict[str, Tensor]] = lambda tables: {name: values[:, columns] for name, values in tables.items()}  # noqa: E731
    old = None if steps.old is None else steps.old[:, columns]
    tables = pick(steps.refs), pick(steps.kls), pick(steps.facts)
    return Steps(steps.log_probs[:, columns], steps.mask[:, columns], old, *tables, steps.event_size, steps.kind)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_method_with_an_oracle_and_a_docstring(path: Path) -> None:
    published = _published(path)
    assert path.stem in published, "a file and its method share one name"
    for name, function in published.items():
        assert ORACLES.get(name), f"{name}: no case in ORACLES of a file in tests/oracles"
        parameters = inspect.signature(function).parameters.values()
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
        assert all(word in (function.__doc__ or "") for word in ("Paper: ", "Deviations: ", "loss ="))
        moved = {key for kwargs, _ in ORACLES[name] for key in kwargs}
        assert {parameter.name for parameter in parameters} == moved, f"{name}: every keyword is moved in at least one case"


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_the_oracle_s(case: Case, seed: int) -> None:
    ours, theirs = table(case.kind, seed), table(case.kind, seed)
    got, _ = _loss(case.method, ours.steps(), ours.feedback())
    wanted = case.oracle(theirs, **case.kwargs)
    got.backward()
    wanted.backward()
    assert theirs.leaf.grad is not None and theirs.leaf.grad.abs().max() > 1e-6
    _close(got, wanted)
    _close(ours.leaf.grad, theirs.leaf.grad)


@every_case
def test_what_it_needs_is_enough(case: Case) -> None:
    full, bare = table(case.kind), table(case.kind)
    method = case.method
    _close(_loss(method, bare.steps(method.needs), bare.feedback())[0], _loss(method, full.steps(), full.feedback())[0], rtol=0)
    for need in method.needs:
        with pytest.raises(UserError):
            _loss(method, full.steps(method.needs - {need}), full.feedback())


def _count(method: Method, steps: Steps) -> int:
    """What the metrics of a micro-batch are means over: live rows where a method sees whole pairs, and else live cells."""
    return int(steps.mask.any(1).sum() if method.unit == "pair" else steps.mask.sum())


def _atoms(method: Method, at: Table, rng: torch.Generator) -> list[Tensor]:
    """Row numbers that have to stay together, in random order."""
    if method.unit == "pair":
        return [torch.tensor([2 * pair, 2 * pair + 1]) for pair in torch.randperm(ROWS // 2, generator=rng).tolist()]
    if method.unit in ("cell", "row"):
        return [torch.tensor([row]) for row in torch.randperm(ROWS, generator=rng).tolist()]
    return [(at.group == group).nonzero()[:, 0] for group in at.group.unique()]


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_a_micro_batch_split_changes_nothing(case: Case, seed: int) -> None:
    rng, whole, split, method = torch.Generator().manual_seed(seed), table(case.kind), table(case.kind), case.method
    wanted, metrics = _loss(method, whole.steps(), whole.feedback())
    wanted.backward()
    signal, weight = method.signal(split.feedback()), method.weigh(split.mask)
    atoms, got, sums, live = _atoms(method, split, rng), 0.0, dict.fromkeys(metrics, 0.0), 0
    while atoms:
        size = int(torch.randint(1, 4, (), generator=rng))
        rows, atoms = torch.cat(atoms[:size]), atoms[size:]
        order = torch.randperm(COLUMNS, generator=rng)
        for columns in order.split([2, COLUMNS - 2]) if method.unit == "cell" else (torch.arange(COLUMNS),):
            piece = _columns(split.steps()[rows], columns)
            part = method.loss(piece, signal[rows] if signal.shape[1] == 1 else signal[rows][:, columns])
            loss = (weight[rows][:, columns] * part.values).sum()
            loss.backward(retain_graph=True)
            got, count = got + loss.item(), _count(method, piece)
            live += count
            for name, value in part.metrics.items():
                sums[name] = max(sums[name], value.item()) if name.endswith("_max") else sums[name] + count * value.item()
    _close(torch.tensor(got, dtype=torch.float64), wanted.detach())
    _close(split.leaf.grad, whole.leaf.grad)
    for name, value in metrics.items():
        assert value.ndim == 0 and not value.requires_grad
        assert sums[name] / (1 if name.endswith("_max") else live) == pytest.approx(value.item(), rel=1e-12), name


def _padded(steps: Steps, feedback: Feedback, garbage: float) -> tuple[Steps, Feedback, Tensor]:
    """The same table with two more rows and three more columns, dead and full of garbage, which also fills the old dead cells."""

    def pad(values: Tensor) -> Tensor:
        wide = torch.full((ROWS + 2, COLUMNS + 3), garbage, dtype=torch.float64)
        wide[:ROWS, :COLUMNS] = torch.where(steps.mask, values.detach(), wide[:ROWS, :COLUMNS])
        return wide

    mask = torch.zeros(ROWS + 2, COLUMNS + 3, dtype=torch.bool)
    mask[:ROWS, :COLUMNS] = steps.mask
    leaf = pad(steps.log_probs).requires_grad_()
    tables = [{name: pad(values) for name, values in part.items()} for part in (steps.refs, steps.kls, steps.facts)]
    wide = Steps(leaf, mask, pad(steps.old), *tables, steps.event_size, steps.kind)  # type: ignore[arg-type]
    missing = torch.full((2,), math.nan, dtype=torch.float64)
    group = torch.cat([feedback.group, torch.tensor([feedback.group[0], 10**9])])
    lengths = torch.cat([feedback.lengths, torch.zeros(2, dtype=torch.int64)])  # type: ignore[list-item]
    pairs, strength = torch.cat([feedback.pairs, torch.tensor([[ROWS, ROWS + 1]])]), torch.cat([feedback.strength, missing[:1]])  # type: ignore[list-item]
    return wide, Feedback(torch.cat([feedback.rewards, missing]), group, pairs=pairs, strength=strength, lengths=lengths), leaf


@every_case
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e300])
def test_padding_changes_nothing(case: Case, garbage: float) -> None:
    at, method = table(case.kind), case.method
    wide, feedback, leaf = _padded(at.steps(), at.feedback(), garbage)
    narrow, _, start = _padded(at.steps(), at.feedback(), 0.0)
    wanted, metrics = _loss(method, _columns(narrow[:ROWS], torch.arange(COLUMNS)), at.feedback())
    got, wide_metrics = _loss(method, wide, feedback)
    wanted.backward()
    got.backward()
    _close(got, wanted)
    assert leaf.grad is not None and start.grad is not None
    _close(leaf.grad, start.grad)
    assert not leaf.grad[~wide.mask].any()
    for name, value in metrics.items():
        _close(wide_metrics[name], value)


@every_case
def test_the_order_of_rows_changes_nothing(case: Case) -> None:
    at, method = table(case.kind), case.method
    order = torch.cat(_atoms(method, at, torch.Generator().manual_seed(1)))
    pairs = order.argsort()[at.pairs]  # where the rows of each pair have gone
    feedback = Feedback(at.rewards[order], at.group[order], pairs=pairs, strength=at.strength, lengths=at.lengths[order])
    _close(method.signal(feedback), method.signal(at.feedback())[order])
    _close(_loss(method, at.steps()[order], feedback)[0], _loss(method, at.steps(), at.feedback())[0])


@every_case
@pytest.mark.parametrize("gap", [1e4, -1e4, 710.0, 20.0])
def test_far_policies_and_poor_feedback_are_finite(case: Case, gap: float) -> None:
    """Two rows of one group and two alone; both signs of the gap within one row and within one pair. Ties, and missing rewards."""
    for rewards in ([0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [math.nan, math.nan], [math.nan, 1.0]):
        leaf = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
        far = torch.tensor([gap, -gap, 0.0, gap], dtype=torch.float64) * torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
        mask = torch.ones(4, 4, dtype=torch.bool)
        facts = {
            "std": torch.full((4, 4), 0.3).double(),
            "dt": torch.full((4, 4), -0.1).double(),
            "noise": torch.full((4, 4), 0.4).double(),
        }
        steps = Steps(leaf, mask, far, {"ref": far}, {"ref": (leaf - far) ** 2}, facts, 1, case.kind)
        known = torch.tensor([*rewards, 3.0, 2.0], dtype=torch.float64)
        strength = (known[0::2] > known[1::2]).double() + 0.5 * (known[0::2] == known[1::2]) + 0 * (known[0::2] - known[1::2])
        pairs, group = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 0, 1, 2])
        feedback = Feedback(known, group, pairs=pairs, strength=strength, lengths=torch.full((4,), 4))
        loss, metrics = _loss(case.method, steps, feedback)
        loss.backward()
        assert loss.isfinite() and leaf.grad is not None and leaf.grad.isfinite().all()
        assert all(value.isfinite() for value in metrics.values())
        assert leaf.grad.float().norm().isfinite(), "a gradient norm is taken in float32"


@every_case
def test_a_policy_that_ran_away_on_a_bad_row_is_still_pulled_back(case: Case) -> None:
    """A row worse than its group whose ratio is far above 1: the gradient must lower its log-probability at any distance."""
    if case.kwargs.get("dual") is not None:
        return  # a dual clip takes this gradient away: it is what it is for
    leaf = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    facts = {"std": torch.ones(2, 1).double(), "dt": -torch.ones(2, 1).double(), "noise": 0.5 * torch.ones(2, 1).double()}
    same, mask = torch.zeros(2, 1).double(), torch.ones(2, 1, dtype=torch.bool)
    steps = Steps(leaf, mask, same - 1e4, {"ref": same}, {"ref": leaf * 0}, facts, 1, case.kind)
    rewards, pairs = torch.tensor([-1.0, 1.0]).double(), torch.tensor([[1, 0]])
    _loss(case.method, steps, Feedback(rewards, torch.tensor([0, 0]), pairs=pairs, lengths=torch.ones(2)))[0].backward()
    assert leaf.grad is not None and leaf.grad[0] > 0


@every_case
def test_an_empty_batch_costs_nothing(case: Case) -> None:
    at = table(case.kind)
    steps = at.steps()
    nothing = Steps(steps.log_probs, steps.mask & False, steps.old, steps.refs, steps.kls, steps.facts, steps.event_size, steps.kind)
    loss, metrics = _loss(case.method, nothing, at.feedback())
    loss.backward()
    assert loss == 0 and at.leaf.grad is not None and not at.leaf.grad.any()
    assert all(value == 0 for value in metrics.values())


@every_case
def test_dead_cells_are_zero(case: Case) -> None:
    at, method = table(case.kind), case.method
    values = method.loss(at.steps(), method.signal(at.feedback())).values
    assert not method.weigh(at.mask)[~at.mask].any() and not values.expand(at.mask.shape)[~at.mask].any()
    assert method.weigh(at.mask).dtype == torch.float64


@every_case
def test_only_the_current_policy_is_trained(case: Case) -> None:
    at, method = table(case.kind), case.method
    frozen = {name: getattr(at, name).clone().requires_grad_() for name in ("old", "ref", "std", "dt", "noise")}
    steps = replace(at, **frozen).steps(method.needs)
    _loss(method, steps, at.feedback())[0].backward()
    assert all(values.grad is None for values in frozen.values())


@every_case
def test_signals_say_nothing_where_nothing_is_known(case: Case) -> None:
    at = table(case.kind)
    signal = case.method.signal(at.feedback())
    assert signal.dtype == torch.float64 and signal.shape in ((ROWS, 1), (ROWS, COLUMNS)) and not signal.requires_grad
    assert signal.isfinite().all() and signal.any() and not signal[at.rewards.isnan()].any()


@every_case
def test_a_kind_that_it_does_not_take_is_refused(case: Case) -> None:
    method, at = case.method, table(case.kind)
    for kind in {"token", "transition", "bound"} - method.kinds:
        steps = at.steps()
        other = Steps(steps.log_probs, steps.mask, steps.old, steps.refs, steps.kls, steps.facts, steps.event_size, kind)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=kind):
            method.loss(other, method.signal(at.feedback()))
    if "old" in method.needs:
        assert "bound" not in method.kinds, "a bound is no density: it has no importance ratio"
