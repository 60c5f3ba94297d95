"""Losses for pairs as logic: each is ``-log sigmoid(log rho)`` of the odds of a formula over what a model says (DPA logic).

Richardson, Srikumar, Sabharwal, "Understanding the Logic of Direct Preference Alignment through Logic" (2024), arXiv 2412.17696: a
formula P has weighted model counts under the model, ``rho = WMC(P) / WMC(not P)`` of the models that are let in, and the loss is
``-log sigmoid(log rho)``. Here counts are enumerated over the four truths of (winner said, loser said), not taken from the paper's table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch.nn import functional

import mmalign as mm
from mmalign.types import Feedback, Steps

Truth = Callable[[bool, bool], bool]


def counted(chosen: float, rejected: float, formula: Truth, let_in: Truth = lambda w, l: True) -> float:  # noqa: E741
    """``log rho`` by enumeration: weights ``pi`` of what is said, ``1 - pi`` of what is not, of the worlds that are let in."""
    counts = {True: 0.0, False: 0.0}
    for w, l in product((True, False), repeat=2):  # noqa: E741
        weight = (chosen if w else 1 - chosen) * (rejected if l else 1 - rejected)
        if let_in(w, l):
            counts[formula(w, l)] += weight
    return math.log(counts[True] / counts[False])


def only_winner(w: bool, l: bool) -> bool:  # noqa: E741
    return w and not l


def one_of_both(w: bool, l: bool) -> bool:  # noqa: E741
    """Exactly one is said: what the odds ratio is conditioned on."""
    return w != l


def value(method, chosen: float, rejected: float, ref: tuple[float, float] = (0.5, 0.5)) -> float:
    """The loss of one pair of one-token rows."""
    log_probs = torch.tensor([[chosen], [rejected]], dtype=torch.float64).log()
    mask = torch.ones(2, 1, dtype=torch.bool)
    steps = Steps(log_probs, mask, refs={"ref": torch.tensor([[ref[0]], [ref[1]]], dtype=torch.float64).log()})
    feedback = Feedback(torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
    return float((method.weigh(mask) * method.loss(steps, method.signal(feedback)).values).sum())


def sigmoid_loss(log_rho: float) -> float:
    return float(-functional.logsigmoid(torch.tensor(log_rho, dtype=torch.float64)))


CASES = [(0.7, 0.2), (0.2, 0.7), (0.5, 0.5), (0.999, 1e-6), (1e-6, 0.999)]


@pytest.mark.parametrize(("chosen", "rejected"), CASES)
def test_orpo_is_the_odds_of_only_the_winner_where_one_of_both_is_said(chosen, rejected):
    log_rho = counted(chosen, rejected, only_winner, one_of_both)
    assert log_rho == pytest.approx(math.log(chosen * (1 - rejected) / (rejected * (1 - chosen))))
    assert value(mm.methods.orpo(beta=2.0), chosen, rejected) == pytest.approx(-math.log(chosen) + 2.0 * sigmoid_loss(log_rho), rel=1e-6)


@pytest.mark.parametrize(("chosen", "rejected"), CASES)
def test_cpo_is_the_ratio_of_the_winner_to_the_loser(chosen, rejected):
    """Worlds count once for what is said in each: ``rho = pi_w / pi_l``, the counts of "the winner" and of "the loser"."""
    log_rho = math.log(chosen / rejected)
    assert value(mm.methods.cpo(beta=1.0, likelihood=0.0), chosen, rejected) == pytest.approx(sigmoid_loss(log_rho), rel=1e-9)
    assert value(mm.methods.cpo(beta=0.3, likelihood=0.0), chosen, rejected) == pytest.approx(sigmoid_loss(0.3 * log_rho), rel=1e-9)


@pytest.mark.parametrize(("chosen", "rejected"), CASES)
def test_dpo_is_cpo_s_ratio_with_the_reference_s_turned_round(chosen, rejected):
    """``rho = pi_w ref_l / (pi_l ref_w)``: the policy says the winner and the reference the loser, over the other way round."""
    ref = (0.4, 0.1)
    log_rho = math.log(chosen * ref[1] / (rejected * ref[0]))
    assert value(mm.methods.dpo(beta=1.0), chosen, rejected, ref) == pytest.approx(sigmoid_loss(log_rho), rel=1e-9)
    assert value(mm.methods.dpo(beta=1.0), chosen, rejected, (0.4, 0.4)) == pytest.approx(
        value(mm.methods.cpo(beta=1.0, likelihood=0.0), chosen, rejected), rel=1e-9
    )  # a reference that is undecided is none


@pytest.mark.parametrize(("chosen", "rejected"), CASES[:3])
def test_unlikelihood_is_the_odds_of_only_the_winner_among_all_worlds(chosen, rejected):
    """``rho = pi_w (1 - pi_l) / (1 - pi_w (1 - pi_l))`` is ``-log pi_w - log(1 - pi_l)``; orpo's formula with every world let in."""
    log_rho = counted(chosen, rejected, only_winner)
    assert sigmoid_loss(log_rho) == pytest.approx(-math.log(chosen) - math.log(1 - rejected), rel=1e-9)


def test_a_stronger_formula_has_the_larger_loss():
    """What follows from another formula counts for less: entailment is an order of losses (the paper's proposition)."""
    for chosen, rejected in CASES:
        strong = sigmoid_loss(counted(chosen, rejected, only_winner))
        weak = sigmoid_loss(counted(chosen, rejected, lambda w, l: not l or w))  # noqa: E741
        assert strong >= weak - 1e-12
