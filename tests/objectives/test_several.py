"""Reward models of several scores, and of labels that are wrong, ties, or of people who differ, on linear worlds with a known truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.types import Feedback, Method, Steps, UserError


class World(NamedTuple):
    """Pairs of rows ``[N, 2, D]``, how sure it is that the first is better ``[N]``, what is true of others, and who said so."""

    rows: Tensor
    strength: Tensor
    held: Tensor
    first_better: Tensor
    who: list[str]


def world(seed: int, truth: Callable[[Tensor, torch.Generator], tuple[Tensor, list[str]]], pairs: int = 400, size: int = 6) -> World:
    """truth: gaps by each of ``size`` numbers ``[N, D]`` -> labels of them, and annotators."""
    rng = torch.Generator().manual_seed(seed)
    rows, held = (torch.randn(count, 2, size, generator=rng, dtype=torch.float64) for count in (pairs, 2000))
    strength, who = truth(rows[:, 0] - rows[:, 1], rng)
    return World(rows, strength, held, truth(held[:, 0] - held[:, 1], torch.Generator())[0], who)


def fitted(
    method: Method, at: World, scores: int, *, updates: int = 60, batch: int = 100, rate: float = 0.1
) -> tuple[Tensor, dict[str, Any]]:
    """Weights ``[D, scores]`` of linear scores after so many updates, and what the last one measured."""
    weights = torch.zeros(at.rows.shape[2], scores, dtype=torch.float64, requires_grad=True)
    optimizer, rng, measured = torch.optim.Adam([weights], lr=rate), torch.Generator().manual_seed(0), {}
    for _ in range(updates):
        taken = torch.randperm(len(at.rows), generator=rng)[:batch]
        steps, signal = given(
            method, at.rows[taken].flatten(0, 1) @ weights, at.strength[taken], taken.tolist(), [at.who[n] for n in taken]
        )
        loss = method.loss(steps, signal)
        optimizer.zero_grad()
        (method.weigh(steps.mask) * loss.values).sum().backward()
        optimizer.step()
        measured = {name: float(value) for name, value in loss.metrics.items()}
    return weights.detach(), measured


def given(method: Method, scores: Tensor, strength: Tensor, names: list[int], who: list[str] | None = None) -> tuple[Steps, Tensor]:
    """The table of pairs of rows, and the method's signal with its survey."""
    steps = Steps(scores, torch.ones(scores.shape, dtype=torch.bool), kind="score")
    number, ids = torch.arange(len(scores)), [f"record {name}" for name in names for _ in range(2)]
    annotators = None if who is None else [name for name in who for _ in range(2)]
    feedback = Feedback(
        torch.zeros(len(scores)).double(), number // 2, pairs=number.view(-1, 2), strength=strength, ids=ids, annotators=annotators
    )
    signal = method.signal(feedback)
    if method.survey is not None:
        signal = method.survey(steps.each(Tensor.detach), signal)
    return steps, signal


def accuracy(weights: Tensor, at: World) -> float:
    ahead = (at.held[:, 0] - at.held[:, 1]) @ weights > 0
    return float((ahead == at.first_better.bool()).double().mean())


def flipped(gaps: Tensor, rng: torch.Generator, part: float = 0.25) -> tuple[Tensor, list[str]]:
    """The first number decides, and so many labels are wrong; none of those that are held out (drawn by a new generator)."""
    held = len(gaps) == 2000
    wrong = torch.rand(len(gaps), generator=rng) < (0.0 if held else part)
    return ((gaps[:, 0] > 0) ^ wrong).double(), [""] * len(gaps)


def test_a_likelihood_that_knows_of_flips_finds_more_of_the_truth() -> None:
    """Ten numbers of which one counts, 300 pairs, one label in four wrong."""
    likely = mm.methods.bradley_terry(smoothing=0.25, correction="likelihood")
    for seed in range(2):
        at = world(seed, flipped, pairs=300, size=10)
        plain, knowing = (accuracy(fitted(method, at, 1)[0][:, 0], at) for method in (mm.methods.bradley_terry(), likely))
        assert knowing > plain + 0.02, (seed, plain, knowing)


def of_two_minds(gaps: Tensor, rng: torch.Generator) -> tuple[Tensor, list[str]]:
    """Odd annotators like what even ones dislike; of who is held out the even ones are asked."""
    who = torch.randint(10, (len(gaps),), generator=rng)
    who = who if len(gaps) < 2000 else torch.zeros_like(who)
    return ((gaps[:, 0] > 0) ^ (who % 2 == 1)).double(), [f"annotator {number}" for number in who.tolist()]


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_a_mixture_finds_out_who_wants_what(assignment: Any) -> None:
    at = world(0, of_two_minds)
    one, _ = fitted(mm.methods.bradley_terry(), at, 1)
    method = mm.methods.bradley_terry_mixture(assignment=assignment)
    two, measured = fitted(method, at, 2)
    assert abs(accuracy(one[:, 0], at) - 0.5) < 0.2
    right = sorted(accuracy(two[:, score], at) for score in range(2))
    assert right[1] > 0.93 and right[0] < 0.07, "one score is the even ones', the other the odd ones'"
    assert measured["accuracy"] > 0.95 and measured["sure"] > 0.99
    state = method.state.dump()
    assert set(state["0"]["names"]) == {f"annotator {number}" for number in range(10)}
    again = mm.methods.bradley_terry_mixture(assignment=assignment)
    again.state.load(state)
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double() @ two
    signals = [given(known, rows, torch.ones(4).double(), [0, 1, 2, 3], at.who[:4])[1] for known in (method, again)]
    assert torch.equal(*signals)


def test_of_whom_a_pair_is_said_is_not_told_by_its_own_label() -> None:
    """One annotator who has said one thing: of which group he is follows from the draw alone, whichever it is."""
    method, scores = mm.methods.bradley_terry_mixture(), torch.tensor([[9.0, -9.0], [0.0, 0.0]]).double()
    shares = [given(method, scores, torch.tensor([p]).double(), [0], ["Ada"])[1][0, 0, 2:] for p in (1.0, 0.0)]
    method.state.load(
        mm.methods.bradley_terry_mixture().state.dump() | {"0": {"names": [], "values": []}, "1": {"names": [], "values": []}}
    )
    assert torch.equal(shares[0], given(method, scores, torch.tensor([0.0]).double(), [0], ["Ada"])[1][0, 0, 2:])


def test_the_most_surprising_pairs_of_a_peer_are_left_out_once_it_is_warm() -> None:
    """Ten pairs whose second score is sure of k of them: 0, 15 and 30 % are dropped in updates 0, 1 and 2."""
    method = mm.methods.peer_review(dropped=0.3, warmup=2)
    gaps = torch.stack([torch.linspace(-3, 3, 10), torch.linspace(3, -3, 10)], 1).double()
    scores = torch.stack([gaps, torch.zeros_like(gaps)], 1).flatten(0, 1)
    for left in (0, 1, 3):
        _, signal = given(method, scores, torch.ones(10).double(), list(range(10)))
        kept = signal[0::2, 0, 1:]
        assert (kept[:, 0] == 0).tolist() == [False] * (10 - left) + [True] * left, "the second is least sure of the last"
        assert (kept[:, 1] == 0).tolist() == [True] * left + [False] * (10 - left)
        torch.testing.assert_close(kept.mean(0), torch.ones(2).double())
    assert method.state.dump() == {"value": 3}


def test_a_record_is_the_same_score_s_at_every_visit() -> None:
    method, scores = mm.methods.bradley_terry(bagging=0.5), torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double()
    strength = torch.ones(200).double()
    steps, signal = given(method, scores, strength, list(range(200)))
    taken = method.loss(steps, signal).values[0::2] != 0
    backwards = list(range(199, -1, -1))
    steps, signal = given(method, scores, strength, backwards)
    assert torch.equal(taken, (method.loss(steps, signal).values[0::2] != 0).flip(0))
    assert 0.4 < float(taken.double().mean()) < 0.6 and 0.15 < float((taken[:, 0] & taken[:, 1]).double().mean()) < 0.35
    nameless = Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]), ids=["", ""])
    with pytest.raises(UserError, match="takes records with ids"):
        method.signal(nameless)


def with_ties(gaps: Tensor, rng: torch.Generator) -> tuple[Tensor, list[str]]:
    """Rao and Kupper's labels at k = 3, of a score that is twice the first number."""
    gap, drawn = 2 * gaps[:, 0], torch.rand(len(gaps), generator=rng, dtype=torch.float64)
    win, loss = torch.sigmoid(gap - torch.tensor(3.0).log()), torch.sigmoid(-gap - torch.tensor(3.0).log())
    return torch.where(drawn < win, 1.0, torch.where(drawn < win + loss, 0.0, 0.5)).double(), [""] * len(gaps)


def test_ties_tell_how_much_better_a_row_has_to_be() -> None:
    """4,000 pairs: the standard error of log k is about .03."""
    at = world(0, with_ties, pairs=4000, size=2)
    method = mm.methods.bradley_terry_ties(k=1.2, rate=0.3)
    weights, measured = fitted(method, at, 1, updates=80, batch=1000, rate=0.1)
    assert measured["k"] == pytest.approx(3.0, rel=0.1)
    assert weights[:, 0].tolist() == pytest.approx([2.0, 0.0], abs=0.15)
    again = mm.methods.bradley_terry_ties(k=1.2, rate=0.3)
    again.state.load(method.state.dump())
    assert again.state.value == pytest.approx(math.log(3), abs=0.1)


@pytest.mark.parametrize("name", ["peer_review", "bradley_terry_mixture"])
def test_another_number_of_scores_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="method: is for 2 scores, and the policy has 3; takes"):
        given(getattr(mm.methods, name)(), torch.zeros(4, 3).double(), torch.ones(2).double(), [0, 1], ["a", "b"])


def test_records_of_nobody_have_no_groups() -> None:
    with pytest.raises(UserError, match="got none with an annotator"):
        given(mm.methods.bradley_terry_mixture(), torch.zeros(4, 2).double(), torch.ones(2).double(), [0, 1], ["", ""])
