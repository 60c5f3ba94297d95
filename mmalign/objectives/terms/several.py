"""Terms of several scores that are models of one thing: members of an ensemble, peers that look at each other's labels, groups of people.

Each takes a term of pairs whose values are of single dimensions, ``[N, T]``, and says what a pair counts for in each of them.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives.parts import Reading, Survey, live
from mmalign.objectives.state.controllers import Together
from mmalign.objectives.state.running import Kept, Named
from mmalign.objectives.terms.pairs import Order, Term, shared
from mmalign.types import Feedback, Steps, UserError

Assignment = Literal["hard", "soft"]


def bagged(term: Term, share: float, *, numbers: int = 1) -> Term:
    """A term of which every dimension learns from a ``share`` of the pairs alone, another one each, at ``1 / share`` times the cost.

    Which they are follows from the record's id, so that a record is the same dimension's at every visit.

    term: of pairs, that surveys nothing. share: above 0, to 1. numbers: of how many scores, side by side, a dimension is made.
    """
    if share == 1:
        return term
    told = Reading(lambda feedback: feedback.rewards[:, None][:, :0], width=0) if term.extras is None else term.extras

    def known(feedback: Feedback) -> Tensor:
        return torch.cat([told.of(feedback).double(), _lots(feedback)], 1)

    def of(steps: Steps, order: Order) -> Tensor:
        width = steps.mask.shape[1]
        taken = _drawn(order.extras[:, -1], share, -(-width // numbers)).repeat_interleave(numbers, 1)[:, :width].double() / share
        return taken * term.of(steps, order._replace(extras=order.extras[:, :-1]))

    return replace(term, of=of, extras=Reading(known, told.reads, told.width + 1))


def peers(term: Term, *, members: int, dropped: float, warmup: int, bagging: float) -> Term:
    """Every score learns from those pairs of an update that cost the next score least (the last one's next is the first).

    Of its n pairs ``ceil((1 - rho) n)`` are kept, ``rho = dropped min(1, t / warmup)`` in update t = 0, 1, ...; they count ``n / kept``.

    term: of pairs, that is told and surveys nothing. members: how many scores there are. dropped: part that is left out in the end.
    warmup: updates. bagging: the part of the records that are a score's, as of ``bagged``.
    """
    assert term.extras is None and term.survey is None
    state = Kept(0)

    def look(steps: Steps, order: Order) -> Tensor:
        cost, counted = _expected(term, steps, order, members)
        if bagging < 1:
            counted = counted & _drawn(order.extras[:, 0], bagging, members)
        rho, kept = dropped * min(1.0, state.value / warmup), torch.zeros_like(cost)
        state.value += 1
        for own in range(members):
            pairs = torch.nonzero(counted[:, own]).flatten()
            most = math.ceil((1 - rho) * len(pairs) - 1e-9)
            least = pairs[cost[pairs, (own + 1) % members].argsort(stable=True)[:most]]
            kept[least, own] = len(pairs) / max(1, most) / bagging
        return kept.repeat_interleave(2, 0)

    def of(steps: Steps, order: Order) -> Tensor:
        return _wide(order.surveyed[0::2], steps) * term.of(steps, order)

    def metrics(steps: Steps, order: Order) -> dict[str, Tensor]:
        return {"kept": (order.surveyed[0::2] > 0).double().mean(1, keepdim=True)}

    extras = Reading(_lots) if bagging < 1 else None
    return replace(term, of=of, extras=extras, survey=Survey(look, width=members, state=state), metrics=metrics)


def mixture(term: Term, *, groups: int, memory: float, assignment: Assignment) -> Term:
    """Every score is what one group of annotators prefers; whose group an annotator is of is told by all that he said (EM).

    The responsibility of score k for a pair of annotator h, without gradient, from h's other comparisons j alone::

        q_k = softmax_k or one-hot argmax_k of  tilt_hk + sum_j memory^(age of j) log P_k(label of j)

    age: updates since, in which h said something. tilt: in 0..1, drawn once for each annotator, which parts scores that are alike at first.

    term: of pairs, minus a log-likelihood, that is told and surveys nothing. groups: how many scores there are. memory: 0 to below 1.
    assignment: ``hard``, one-hot, or ``soft``.
    """
    assert term.extras is None and term.survey is None
    evidence = [Named(0.0) for _ in range(groups)]

    def places(feedback: Feedback) -> Tensor:
        who = [""] * len(feedback.rewards) if feedback.annotators is None else feedback.annotators
        if feedback.annotators is not None and not any(who):
            raise UserError("records: got none with an annotator, and groups of annotators are what is looked for; takes records with one")
        return torch.stack([known.find(who) for known in evidence])[0][:, None]

    def look(steps: Steps, order: Order) -> Tensor:
        cost, counted = _expected(term, steps, order, groups)
        place, likely = order.extras[0::2, 0], -live(cost, counted)
        before = torch.stack([known.read(place) for known in evidence], 1)
        shares = torch.zeros_like(cost)
        for one in place.unique().tolist():
            own = place == one
            tilt = torch.rand(groups, generator=_of(int(one)), dtype=torch.float64)
            shares[own] = tilt + before[own] + likely[own].sum(0) - likely[own]
            if counted[own].any():
                for known, now in zip(evidence, memory * before[own][0] + likely[own].sum(0), strict=True):
                    known.write(torch.tensor([one]), now)
        found = shares.softmax(1) if assignment == "soft" else functional.one_hot(shares.argmax(1), groups).double()
        return found.repeat_interleave(2, 0)

    def of(steps: Steps, order: Order) -> Tensor:
        return _wide(order.surveyed[0::2], steps) * term.of(steps, order)

    def metrics(steps: Steps, order: Order) -> dict[str, Tensor]:
        shares, counted = _wide(order.surveyed[0::2], steps), shared(steps)
        assert term.gap is not None
        gap = live(term.gap(steps, order), counted & (order.sign != 0))
        numbers = {"margin": gap, "accuracy": (gap.sign() + 1) / 2}
        found = {name: (shares * values).sum(1, keepdim=True) for name, values in numbers.items()}
        return found | {"sure": order.surveyed[0::2].amax(1, keepdim=True)}

    state = Together(**{str(number): known for number, known in enumerate(evidence)})
    return replace(term, of=of, extras=Reading(places), survey=Survey(look, width=groups, state=state), metrics=metrics)


def _expected(term: Term, steps: Steps, order: Order, scores: int) -> tuple[Tensor, Tensor]:
    """What each pair costs each score under its label, ``[N, scores]``, and where that says something.

    Errors: UserError where the policy has another number of scores.
    """
    counted = shared(steps) & (order.sign != 0)
    width = steps.mask.shape[1]
    if width < scores or bool(steps.mask[:, scores:].any()):
        raise UserError(f"method: is for {scores} scores, and the policy has {width}; takes a policy of {scores} names in policy.scores")
    turned = order.turned()
    cost = order.strength * term.of(steps, order) + turned.strength * term.of(steps, turned)
    cost, counted = (torch.cat([values, values.new_zeros(len(values), scores)], 1)[:, :scores] for values in (live(cost, counted), counted))
    return cost, counted


def _wide(shares: Tensor, steps: Steps) -> Tensor:
    """``[N, scores]`` as ``[N, T]``: columns that no row has say nothing."""
    width = steps.mask.shape[1]
    return torch.cat([shares, shares.new_zeros(len(shares), width)], 1)[:, :width]


def _lots(feedback: Feedback) -> Tensor:
    """``[B, 1]`` whole numbers that records are told apart by; of rows that are of no records, their groups'.

    Errors: UserError for records without an id.
    """
    names = [str(number) for number in feedback.group.tolist()] if feedback.ids is None else feedback.ids
    if not all(names):
        raise UserError("bagging: got a record without an id, by which each score has its part of them; takes records with ids")
    return torch.tensor([zlib.crc32(name.encode()) for name in names], dtype=torch.float64)[:, None]


def _drawn(lots: Tensor, share: float, scores: int) -> Tensor:
    """``[N, scores]`` bool: whether a pair is a score's. lots: ``[2N]``."""
    draws = [torch.rand(scores, generator=_of(int(lot)), dtype=torch.float64) for lot in lots[0::2] + lots[1::2]]
    return torch.stack(draws) < share if draws else torch.zeros((0, scores), dtype=torch.bool)


def _of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
