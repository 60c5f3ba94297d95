"""Several terms with numbers, surveys and states of their own in one sentence: each sees its own, and all are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign.needs import ENTROPY, MASK, OLD, VALUE, contrast
from mmalign.objectives import links, ratios, scores, surrogates, weights
from mmalign.objectives.parts import DENSITIES, Reading, Survey, Term
from mmalign.objectives.sentences.layout import Layout
from mmalign.objectives.sentences.listwise import listwise
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.state.controllers import RunningSpread
from mmalign.objectives.terms import baselines, pairs, regularisers, relabelled
from mmalign.objectives.terms.gates import Signal
from mmalign.objectives.terms.lists import Ranking
from mmalign.types import Method, Steps, UserError
from tests.oracles.tables import table

LINK = links.ahead(links.named("logistic", beta=0.5))


def doubted() -> pairs.Term:
    return relabelled.posterior(pairs.compared(scores.ratio(), LINK), reliability=0.7, momentum=0.5)


def shifted() -> pairs.Term:
    return baselines.classified(beta=0.3, shift="running")


def value(method: Method) -> Tensor:
    """The values of a whole update, surveyed once."""
    at = table("token")
    feedback = replace(at.feedback(), annotators=[f"ann{row % 3}" for row in range(len(at.rewards))])
    steps = at.steps()
    signal = method.signal(feedback)
    if method.survey is not None:
        with torch.no_grad():
            signal = method.survey(steps.each(Tensor.detach), signal)
    return method.loss(steps, signal).values


def test_two_terms_with_a_state_and_a_survey_each_add_up_in_one_sentence() -> None:
    token = regularisers.likelihood("token")
    alone = [value(pairwise(term)) for term in (doubted(), shifted(), token)]
    together = pairwise(doubted(), shifted(), token)
    torch.testing.assert_close(value(together), sum(alone), rtol=1e-12, atol=1e-12)
    other_way_round = pairwise(token, shifted(), doubted())
    torch.testing.assert_close(value(other_way_round), sum(alone), rtol=1e-12, atol=1e-12)
    assert together.reads == {MASK} and together.signal(table("token").feedback()).shape[-1] == 3


def test_the_states_of_several_terms_are_kept_and_come_back() -> None:
    method, again = pairwise(doubted(), shifted()), pairwise(doubted(), shifted())
    first = value(method)
    kept = json.loads(json.dumps(method.state.dump()))
    assert kept.keys() == {"0", "1"} and kept["0"]["names"] == ["ann0", "ann1", "ann2"] and kept["1"]["count"] > 0
    again.state.load(kept)
    assert torch.equal(value(method), value(again)) and not torch.equal(first, value(again))
    assert pairwise(shifted()).state.dump().keys() == {"mean", "count"}  # one state stays what it is
    assert pairwise(pairs.compared(scores.ratio(), LINK)).state is None


def reader(number: float, state: RunningSpread | None = None) -> Term[Signal]:
    """A term that adds what it was told, a hundred times what it found, and nothing of its neighbours."""

    def find(steps: Steps, signal: Signal) -> Tensor:
        if state is not None:
            state.update(signal.extras)
        return signal.extras * 0 + number

    of = lambda steps, signal: (signal.extras + 100 * signal.surveyed).sum(-1) + 0 * steps.log_probs  # noqa: E731
    extras = Reading(lambda feedback: torch.full((len(feedback.rewards), 1, 1), number), frozenset({VALUE}), state=state)
    return Term(of, frozenset({ENTROPY}), "row", DENSITIES, extras, Survey(find, frozenset({contrast("bad")})))


def policy_gradient_of(*terms: Term[Signal], **more: Term[Signal]) -> Method:
    return policy_gradient(
        advantage=Reading(lambda feedback: feedback.rewards.nan_to_num(), frozenset({OLD}), state=RunningSpread()),
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=weights.token_mean,
        terms={str(number): term for number, term in enumerate(terms)},
        **more,
    )


def test_terms_of_a_policy_gradient_see_their_own_numbers() -> None:
    at, seen = table("token"), RunningSpread()
    doubles = replace(reader(2.0), of=lambda steps, signal: signal.surveyed[..., 0])
    method = policy_gradient_of(reader(1.0), reader(3.0, seen), gate=doubles)
    plain = policy_gradient_of()
    signal = method.signal(at.feedback())
    assert signal.shape == (12, 1, 4) and torch.equal(signal[:, :, 0], plain.signal(at.feedback()))
    with pytest.raises(UserError, match="no survey"):
        method.loss(at.steps(), signal)
    surveyed = method.survey(at.steps(), signal)  # type: ignore[misc]
    assert surveyed.shape == (12, 5, 7)
    loss = method.loss(at.steps(), surveyed)
    values, metrics = loss.values, loss.metrics
    twice = 2 * plain.loss(at.steps(), plain.signal(at.feedback())).values
    torch.testing.assert_close(values[at.mask], (twice + 101.0 + 303.0)[at.mask])
    assert metrics["0"] == pytest.approx(101.0) and metrics["1"] == pytest.approx(303.0) and seen.count == at.mask.numel()
    assert method.reads == {OLD, VALUE} and method.survey_needs == {contrast("bad")} and method.unit == "row"
    assert method.needs == {ENTROPY} and len(method.state.dump()) == 2


def test_terms_of_a_list_see_their_own_numbers() -> None:
    at = table("token")

    def term(number: float) -> Term[Ranking]:
        of = lambda steps, ranking: (ranking.extras + 100 * ranking.surveyed) + 0 * steps.log_probs  # noqa: E731
        extras = Reading(lambda feedback: torch.full((len(feedback.rewards), 1), number))
        return Term(of, extras=extras, survey=Survey(lambda steps, ranking: ranking.extras * 10))

    make = lambda *terms: listwise(  # noqa: E731
        score=scores.policy("per_step"), value=lambda scores, ranking: scores, weigh=weights.sequence_mean, terms=terms
    )
    method, plain = make(term(1.0), term(2.0)), make()
    signal = method.survey(at.steps(), method.signal(at.feedback()))  # type: ignore[misc]
    known = method.keep(at.feedback())  # type: ignore[misc]
    added = method.loss(at.steps(), signal).values - plain.loss(at.steps(), plain.signal(at.feedback())).values
    assert torch.allclose(added[known[:, None] & at.mask], torch.tensor(3003.0).double()) and signal.shape == (12, 1, 7)


def test_kinds_are_those_that_all_terms_take() -> None:
    assert Layout([]).kinds(DENSITIES) == DENSITIES and Layout([]).unit() == "cell"
    assert Layout([Term(lambda steps, known: steps.log_probs, kinds=frozenset({"token"}))]).kinds(DENSITIES) == {"token"}
    assert pairwise(pairs.compared(scores.ratio(), LINK), regularisers.likelihood("token"), kinds=DENSITIES | {"bound"}).kinds == DENSITIES
