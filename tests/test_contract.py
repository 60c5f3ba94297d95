"""One table of tests that every method in mmalign/methods passes. It finds the methods, and their oracles, by itself.

A new method needs a case in the ``ORACLES`` of a file in tests/oracles, and nothing here. Methods of your own need no fork: with
``MMALIGN_CONTRACT=my_module``, a module that holds them and their ``ORACLES``, they join the table.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import mmalign.methods
from mmalign.needs import ADJOINT_SIZE, COLLISION, MASK, OLD, REWARDS, SEGMENT, SLOPE, STD, VALUE, refs
from mmalign.types import Feedback, Loss, Method, Steps, UserError
from tests.oracles.tables import ABSOLUTE, COLUMNS, CONTRASTS, CRITICS, DRAWN, PARTS, ROWS, Table, table

HERE = Path(__file__).parent
FOLDER = Path(next(iter(mmalign.methods.__path__)))
FILES = sorted(path for path in FOLDER.rglob("*.py") if path.name != "__init__.py")


def _published(path: Path) -> dict[str, Callable[..., Method]]:
    """The public functions that a method file defines."""
    module = importlib.import_module(".".join(("mmalign", "methods", *path.relative_to(FOLDER).with_suffix("").parts)))
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: function for name, function in functions if function.__module__ == module.__name__ and not name.startswith("_")}


def _oracles() -> tuple[dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]], set[str], dict[str, str]]:
    """Cases; values of keywords that mean Gaussian steps; and, name -> why, methods whose gradient ends far away by design."""
    cases: dict[str, Any] = {}
    gaussian: set[str] = set()
    saturating: dict[str, str] = {}
    for path in sorted((HERE / "oracles").glob("*.py")):
        module = importlib.import_module(f"tests.oracles.{path.stem}")
        cases.update(vars(module).get("ORACLES", {}))
        gaussian |= vars(module).get("GAUSSIAN", set())
        saturating |= vars(module).get("SATURATING", {})
    return cases, gaussian, saturating


FROZEN = ("old", "ref", "previous", "std", "dt", "noise", "changed", "phrase", "segment")
METHODS = {name: function for path in FILES for name, function in _published(path).items()}
ORACLES, GAUSSIAN, SATURATING = _oracles()
for guest in os.environ.get("MMALIGN_CONTRACT", "").split():  # import paths of modules with methods and ORACLES of your own
    own = importlib.import_module(guest)
    METHODS.update({name: vars(own)[name] for name in own.ORACLES})
    ORACLES.update(own.ORACLES)
    SATURATING.update(vars(own).get("SATURATING", {}))


class Case(NamedTuple):
    """A method with hyper-parameters, on one kind of steps."""

    name: str
    kwargs: dict[str, Any]
    oracle: Callable[..., Tensor]
    kind: Any

    @property
    def method(self) -> Method:
        return METHODS[self.name](**self.kwargs)

    def steps(self, at: Table) -> Steps:
        """What the method asks for of a table, and no more: ``test_what_it_needs_is_enough`` says that this is enough."""
        method = self.method
        return at.steps(method.needs | method.survey_needs)


def _cases(name: str) -> Iterable[Case]:
    for kwargs, oracle in ORACLES[name]:
        for kind in sorted(METHODS[name](**kwargs).kinds):
            if kind != "token" or not GAUSSIAN & {str(value) for value in kwargs.values()}:
                yield Case(name, kwargs, oracle, kind)


CASES = {name: list(_cases(name)) for name in ORACLES if name in METHODS}


def every_case(test: Callable[[Case], None]) -> Callable[[str], None]:
    """A test of each method, which goes through its cases: pytest's own part of ten thousand tests would be longer than theirs."""

    def each(name: str) -> None:
        for case in CASES[name]:
            try:
                test(case)
            except BaseException as error:  # also what pytest.raises says
                error.add_note(f"{case.name}(**{case.kwargs}) on steps of kind {case.kind}")
                raise

    each.__name__, each.__doc__ = test.__name__, test.__doc__
    return pytest.mark.parametrize("name", CASES)(each)


def _close(got: Tensor, wanted: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-14)


def _signal(method: Method, steps: Steps, feedback: Feedback) -> Tensor:
    """The signal of a whole update, with what the method's survey of it finds."""
    signal = method.signal(feedback)
    if method.survey is None:
        return signal
    with torch.no_grad():
        return method.survey(steps.each(Tensor.detach), signal)


def _loss(method: Method, steps: Steps, feedback: Feedback) -> tuple[Tensor, dict[str, Tensor]]:
    loss = method.loss(steps, _signal(method, steps, feedback))
    return (method.weigh(steps.mask) * loss.values).sum(), loss.metrics


def _columns(steps: Steps, columns: Tensor) -> Steps:
    return steps.each(lambda values: values[:, columns])


def _reordered(feedback: Feedback, order: Tensor) -> Feedback:
    """The same feedback about rows in another order; pairs stay the pairs that they are."""
    pick: Callable[[Tensor | None], Any] = lambda values: None if values is None else values[order]  # noqa: E731
    pairs = None if feedback.pairs is None else order.argsort()[feedback.pairs]
    wins = None if feedback.wins is None else feedback.wins[order][:, order]
    tables = {need: values[order] for need, values in feedback.tables.items()}
    parts = {name: values[order] for name, values in feedback.parts.items()}
    drawn = {name: rows[order] for name, rows in feedback.drawn.items()}
    return replace(
        feedback, rewards=feedback.rewards[order], group=feedback.group[order], parts=parts, labels=pick(feedback.labels), pairs=pairs,
        lengths=pick(feedback.lengths), wins=wins, tables=tables, drawn=drawn, branch=pick(feedback.branch),
    )  # fmt: skip


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
def test_value_and_gradient_are_the_oracle_s(case: Case) -> None:
    for seed in range(3):
        _as_the_oracle(case, seed)


def _as_the_oracle(case: Case, seed: int) -> None:
    ours, theirs = table(case.kind, seed), table(case.kind, seed)
    got, _ = _loss(case.method, case.steps(ours), ours.feedback())
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
    needs = method.needs | method.survey_needs
    _close(_loss(case.method, bare.steps(needs), bare.feedback())[0], _loss(case.method, full.steps(), full.feedback())[0], rtol=0)
    for need in (need for need in needs if need.kind != "score"):  # of which there is no table
        with pytest.raises(UserError):
            _loss(method, full.steps(needs - {need}), full.feedback())
    assert torch.equal(case.method.signal(full.feedback(method.reads)), case.method.signal(full.feedback()))
    for read in method.reads:
        with pytest.raises(UserError):
            method.signal(full.feedback(method.reads - {read}))


def _over(loss: Loss, steps: Steps) -> int:
    """What the metrics of a micro-batch are means over."""
    return int(steps.mask.sum() if loss.over is None else loss.over)


def _atoms(method: Method, at: Table, rng: torch.Generator) -> list[Tensor]:
    """Row numbers that have to stay together, in random order."""
    if method.unit == "pair":
        return [torch.tensor([2 * pair, 2 * pair + 1]) for pair in torch.randperm(ROWS // 2, generator=rng).tolist()]
    if method.unit in ("cell", "row"):
        return [torch.tensor([row]) for row in torch.randperm(ROWS, generator=rng).tolist()]
    if method.unit == "batch":
        return [torch.cat([torch.tensor([2 * pair, 2 * pair + 1]) for pair in torch.randperm(ROWS // 2, generator=rng).tolist()])]
    return [(at.group == group).nonzero()[:, 0] for group in at.group.unique()]


@every_case
def test_a_micro_batch_split_changes_nothing(case: Case) -> None:
    whole, method = table(case.kind), case.method
    wanted, metrics = _loss(method, case.steps(whole), whole.feedback())
    wanted.backward()
    for name, value in metrics.items():
        assert value.ndim == 0 and not value.requires_grad, name
    for seed in range(2 if len(_atoms(method, whole, torch.Generator())) > 1 else 1):  # of which the second has other parts
        got, gradient, pooled = _in_parts(case, seed, metrics)
        _close(got, wanted.detach())
        _close(gradient, whole.leaf.grad)
        for name, value in metrics.items():
            assert pooled[name] == pytest.approx(value.item(), rel=1e-12), (name, seed)


def _in_parts(case: Case, seed: int, metrics: Iterable[str]) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of an update in micro-batches of a seed."""
    rng, split, method = torch.Generator().manual_seed(seed), table(case.kind), case.method
    steps = case.steps(split)
    signal, weight = _signal(method, steps, split.feedback()), method.weigh(split.mask)
    atoms, got, sums, live = _atoms(method, split, rng), 0.0, dict.fromkeys(metrics, 0.0), 0
    while atoms:
        size = int(torch.randint(1, 4, (), generator=rng))
        rows, atoms = torch.cat(atoms[:size]), atoms[size:]
        order = torch.randperm(COLUMNS, generator=rng)
        for columns in order.split([2, COLUMNS - 2]) if method.unit == "cell" else (torch.arange(COLUMNS),):
            piece = _columns(steps[rows], columns)
            part = method.loss(piece, signal[rows] if signal.shape[1] == 1 else signal[rows][:, columns])
            loss = (weight[rows][:, columns] * part.values).sum()
            loss.backward(retain_graph=True)
            got, count = got + loss.item(), _over(part, piece)
            live += count
            for name, value in part.metrics.items():
                sums[name] = max(sums[name], value.item()) if name.endswith("_max") else sums[name] + count * value.item()
    assert split.leaf.grad is not None
    pooled = {name: total / (1 if name.endswith("_max") else live) for name, total in sums.items()}
    return torch.tensor(got, dtype=torch.float64), split.leaf.grad, pooled


def _padded(steps: Steps, feedback: Feedback, garbage: float) -> tuple[Steps, Feedback, Tensor]:
    """The same table with two more rows and three more columns, dead and full of garbage, which also fills the old dead cells."""

    def pad(values: Tensor) -> Tensor:
        wide = torch.full((ROWS + 2, COLUMNS + 3), garbage, dtype=torch.float64)
        wide[:ROWS, :COLUMNS] = torch.where(steps.mask, values.detach(), wide[:ROWS, :COLUMNS])
        return wide

    mask = torch.zeros(ROWS + 2, COLUMNS + 3, dtype=torch.bool)
    mask[:ROWS, :COLUMNS] = steps.mask
    leaf = pad(steps.log_probs).requires_grad_()
    wide = replace(steps.each(lambda values: mask if values.dtype == torch.bool else pad(values)), log_probs=leaf)
    moves = {name: replace(other, log_probs=other.log_probs + (leaf - leaf.detach())) for name, other in wide.contrasts.items()}
    terms = {name: table + (leaf - leaf.detach()) if name in ("adjoint", "dead_end") else table for name, table in wide.terms.items()}
    distances = {name: table + (leaf - leaf.detach()) for name, table in wide.kls.items()}
    wide = replace(wide, contrasts=moves, terms=terms, kls=distances)  # they are of the same parameters
    missing = torch.full((2,), math.nan, dtype=torch.float64)
    wins = torch.full((ROWS + 2, ROWS + 2), math.nan, dtype=torch.float64)
    wins[:ROWS, :ROWS] = feedback.wins  # type: ignore[assignment]
    return (
        wide,
        Feedback(
            torch.cat([feedback.rewards, missing]),
            torch.cat([feedback.group, torch.tensor([feedback.group[0], 10**9])]),
            parts={name: torch.cat([values, missing]) for name, values in feedback.parts.items()},
            labels=torch.cat([feedback.labels, missing]),  # type: ignore[list-item]
            pairs=torch.cat([feedback.pairs, torch.tensor([[ROWS, ROWS + 1]])]),  # type: ignore[list-item]
            strength=torch.cat([feedback.strength, missing[:1]]),  # type: ignore[list-item]
            lengths=torch.cat([feedback.lengths, torch.zeros(2, dtype=torch.int64)]),  # type: ignore[list-item]
            wins=wins,
            tables={need: mask if need == MASK else pad(values) for need, values in feedback.tables.items()},
            drawn={name: torch.cat([rows, torch.tensor([False, False])]) for name, rows in feedback.drawn.items()},
            branch=torch.cat([feedback.branch, torch.tensor([feedback.branch[0], 10**9])]),  # type: ignore[list-item,index]
        ),
        leaf,
    )


@every_case
def test_padding_changes_nothing(case: Case) -> None:
    at, method = table(case.kind), case.method
    narrow, _, start = _padded(case.steps(at), at.feedback(), 0.0)
    wanted, metrics = _loss(method, _columns(narrow[:ROWS], torch.arange(COLUMNS)), at.feedback())
    wanted.backward()
    assert start.grad is not None
    for garbage in (math.nan, math.inf, -1e300):
        got, gradient, wide_metrics, mask = _of_padded(case, garbage)
        _close(got, wanted)
        _close(gradient, start.grad)
        assert not gradient[~mask].any()
        for name, value in metrics.items():
            _close(wide_metrics[name], value)


def _of_padded(case: Case, garbage: float) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Loss, gradient and metrics of the table with that garbage around it, and its mask."""
    at = table(case.kind)
    wide, feedback, leaf = _padded(case.steps(at), at.feedback(), garbage)
    got, metrics = _loss(case.method, wide, feedback)
    got.backward()
    assert leaf.grad is not None
    return got, leaf.grad, metrics, wide.mask


@every_case
def test_the_order_of_rows_changes_nothing(case: Case) -> None:
    at, method = table(case.kind), case.method
    order = torch.cat(_atoms(method, at, torch.Generator().manual_seed(1)))
    feedback = _reordered(at.feedback(), order)
    _close(case.method.signal(feedback), method.signal(at.feedback())[order])
    steps = case.steps(at)
    _close(_loss(case.method, steps[order], feedback)[0], _loss(case.method, steps, at.feedback())[0])


@every_case
def test_a_pair_named_the_other_way_round_is_the_same_pair(case: Case) -> None:
    at = table(case.kind)
    feedback = at.feedback()
    turned = replace(feedback, pairs=at.pairs.flip(1), strength=1 - at.strength)
    steps = case.steps(at)
    _close(_loss(case.method, steps, turned)[0], _loss(case.method, steps, feedback)[0])


def _far(kind: Any, gaps: Tensor, rewards: list[float]) -> tuple[Tensor, Steps, Feedback]:
    """A leaf of zeros ``[B, T]`` whose old and reference log-probabilities lie ``gaps`` away; rows 2k and 2k + 1 are a pair."""
    rows, columns = gaps.shape
    leaf = torch.zeros_like(gaps, requires_grad=True)
    mask, known = torch.ones(rows, columns, dtype=torch.bool), torch.tensor(rewards, dtype=torch.float64)
    names = {"std": 0.3, "slope": 0.4, "dt": -0.1, "noise": 0.4, "changed": 1.0, "phrase": 1.0, "segment": 1.0}
    facts = {name: torch.full_like(gaps, value) for name, value in (names | {str(need): 0.8 for need in ABSOLUTE}).items()}
    contrast = Steps(leaf * 0.5, mask, refs={"ref": gaps}, kind=kind)
    squares = {"ref": (leaf - gaps) ** 2, "previous": (leaf - gaps / 2) ** 2}
    steps = Steps(
        leaf, mask, gaps, {"ref": gaps, "previous": gaps / 2, "before": gaps / 4}, squares, facts, 1, kind, {"ref": squares["ref"]},
        {"entropy": leaf + 1, "collision": leaf - 1, "value": leaf + 0.1, "q1": leaf - 0.2, "q2": leaf / 2, "v1": leaf + 0.3,
         "v2": leaf / 3, "reward_mask": leaf + 0.5, "kl_mask": leaf + 2,
         "activation": gaps, "degree": -(gaps**2), "dead_end": leaf - 0.5, "dead_end_best": leaf * 0 - 0.1, "drift": (leaf - gaps) ** 2,
         "adjoint": leaf + 0.2}, dict.fromkeys(CONTRASTS, contrast),
    )  # fmt: skip
    strength = (known[0::2] > known[1::2]).double() + 0.5 * (known[0::2] == known[1::2]) + 0 * (known[0::2] - known[1::2])
    labels = (known.view(-1, 2) > known.view(-1, 2).nanmean(1, keepdim=True)).double().flatten() + 0 * known
    pairs, group = torch.arange(rows).view(-1, 2), torch.tensor([0, 0, 1, 2][:rows])
    same = (group[:, None] == group[None, :]).fill_diagonal_(False)
    wins = torch.where(same, (known[:, None] - known[None, :]).sigmoid(), math.nan)
    tables = {MASK: mask, OLD: gaps, refs("ref"): gaps, refs("previous"): gaps / 2, REWARDS: gaps * 0 + 1}
    tables |= {VALUE: gaps * 0, SEGMENT: gaps * 0 + 1, COLLISION: gaps * 0 - 1, STD: gaps * 0 + 0.3, SLOPE: gaps * 0 + 0.4}
    tables |= {ADJOINT_SIZE: gaps * 0 + 0.7, **{need: gaps * 0 + len(str(need)) / 10 for need in CRITICS}}
    parts = dict.fromkeys(PARTS, known.clamp(0, 1))
    lengths = torch.full((rows,), columns)
    drawn = dict.fromkeys(DRAWN, torch.arange(rows) == 1)
    feedback = Feedback(
        known, group, parts=parts, labels=labels, pairs=pairs, strength=strength, lengths=lengths, wins=wins, tables=tables, drawn=drawn
    )
    return leaf, steps, feedback


@every_case
def test_far_policies_and_poor_feedback_are_finite(case: Case) -> None:
    """Two rows of one group and two alone; both signs of the gap within one row and within one pair. Ties, and missing rewards.

    The other sign of a gap is the first two rows the other way round, beside rows alone that lie on the other side.
    """
    tied, missing = [1.0, 1.0], math.nan
    _finite(case, 1e4, [0.0, 1.0], [1.0, 0.0], tied, [missing, missing], [missing, 1.0])
    _finite(case, -1e4, [0.0, 1.0], tied, [missing, 1.0])
    for gap in (710.0, 20.0):
        _finite(case, gap, [0.0, 1.0], [1.0, 0.0])


def _finite(case: Case, gap: float, *several: list[float]) -> None:
    for rewards in several:
        gaps = torch.tensor([gap, -gap, 0.0, gap, gap], dtype=torch.float64) * torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
        leaf, steps, feedback = _far(case.kind, gaps, [*rewards, 3.0, 2.0])
        loss, metrics = _loss(case.method, steps, feedback)
        loss.backward()
        assert loss.isfinite() and leaf.grad is not None and leaf.grad.isfinite().all()
        assert all(value.isfinite() for value in metrics.values())
        assert leaf.grad.float().norm().isfinite(), "a gradient norm is taken in float32"


@every_case
def test_a_policy_that_ran_away_on_a_bad_row_is_still_pulled_back(case: Case) -> None:
    """A row worse than its group whose ratio is far above 1: the gradient must lower its log-probability at any distance."""
    if case.kwargs.get("dual") is not None or case.kwargs.get("correction") == "likelihood" or case.name in SATURATING:
        return  # a dual clip takes this gradient away: it is what it is for; and so do the methods that say so
    columns = COLUMNS if case.kind == "score" else 1  # a method may be for so many scores
    leaf, steps, feedback = _far(case.kind, torch.full((2, columns), -1e4, dtype=torch.float64), [-1.0, 1.0])
    same = {"ref": torch.zeros(2, columns, dtype=torch.float64)}
    _loss(case.method, replace(steps, refs={**steps.refs, **same}, kls={"ref": leaf * 0, "previous": leaf * 0}), feedback)[0].backward()
    assert leaf.grad is not None and leaf.grad[0].any()
    assert bool((leaf.grad[0] >= -1e-12 * leaf.grad.abs().max()).all())  # but for rounding


@every_case
def test_an_empty_batch_costs_nothing(case: Case) -> None:
    at = table(case.kind)
    steps = case.steps(at)
    nothing = steps.each(lambda values: values & False if values.dtype == torch.bool else values)
    loss, metrics = _loss(case.method, nothing, at.feedback())
    loss.backward()
    assert loss == 0 and at.leaf.grad is not None and not at.leaf.grad.any()
    assert all(value == 0 for value in metrics.values())


@every_case
def test_dead_cells_are_zero(case: Case) -> None:
    at, method = table(case.kind), case.method
    steps = case.steps(at)
    values = method.loss(steps, _signal(method, steps, at.feedback())).values
    assert not method.weigh(at.mask)[~at.mask].any() and not values.expand(at.mask.shape)[~at.mask].any()
    assert method.weigh(at.mask).dtype == torch.float64


@every_case
def test_only_the_current_policy_is_trained(case: Case) -> None:
    at, method = table(case.kind), case.method
    frozen = {name: getattr(at, name).clone().requires_grad_() for name in FROZEN}
    steps = replace(at, **frozen).steps(method.needs | method.survey_needs)
    _loss(method, steps, at.feedback())[0].backward()
    assert all(values.grad is None for values in frozen.values())


@every_case
def test_signals_say_nothing_where_nothing_is_known(case: Case) -> None:
    at = table(case.kind)
    signal = case.method.signal(at.feedback())
    assert signal.dtype == torch.float64 and signal.shape[:2] in ((ROWS, 1), (ROWS, COLUMNS)) and not signal.requires_grad
    assert signal.ndim in (2, 3) and signal.isfinite().all() and signal.any() and not signal[at.rewards.isnan()].any()


@every_case
def test_a_kind_that_it_does_not_take_is_refused(case: Case) -> None:
    method, at = case.method, table(case.kind)
    for kind in {"token", "transition", "bound", "score"} - method.kinds:
        steps = case.steps(at)
        other = replace(steps, kind=kind)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=kind):
            method.loss(other, _signal(method, steps, at.feedback()))
    if OLD in method.needs:
        assert "bound" not in method.kinds, "a bound is no density: it has no importance ratio"
