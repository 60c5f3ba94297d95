"""What is learned follows the rewards, method by method: other rewards are another gradient.

A method that forgets its reward learns all the same, and its log looks alike: nothing else here would notice. All that a run knows of its
rows comes from rewards here, as in an online run without an oracle: pairs, labels and wins are what is made of them, and the adjoints of
methods that carry the reward's gradient are of these rewards.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign.needs import REWARDS
from mmalign.objectives.feedback import comparisons
from mmalign.training.updates.units import in_units
from mmalign.types import Feedback, Method
from tests.oracles.tables import Table, table
from tests.test_contract import METHODS, ORACLES

WITHOUT = {"diffusion_opd": "follows its teacher", "opd": "follows its teacher, unless a reward is asked for too"}
"""Methods whose loss no reward changes, and why."""

LEARNED = sorted(name for name in METHODS if name not in WITHOUT)


def mirrored(scores: Tensor) -> Tensor:
    """The best as bad as the worst was, in the same range; what is not known is not."""
    known = scores[~scores.isnan()]
    return known.max() + known.min() - scores


def gradient(method: Method, rows: Table, *, other: bool) -> Tensor:
    """Of a whole update, by what the policy says of each cell; other: by mirrored rewards, and adjoints the other way."""
    of = mirrored if other else (lambda scores: scores)
    given = rows.feedback()
    parts = {name: of(scores) for name, scores in given.parts.items()}
    tables = {need: of(scores) if need == REWARDS else scores for need, scores in given.tables.items()}
    drawn = {behavior.name: given.drawn[behavior.name] for behavior in method.behaviors}
    feedback = Feedback(of(given.rewards), given.group, parts=parts, lengths=given.lengths, tables=tables, drawn=drawn)
    feedback = (method.pairs or comparisons.best_and_worst)(feedback) if method.unit == "pair" else feedback
    steps = rows.steps(method.needs | method.survey_needs)
    if other and "adjoint" in steps.terms:
        steps = replace(steps, terms={**steps.terms, "adjoint": -steps.terms["adjoint"]})
    kept = ~feedback.rewards.isnan() & rows.mask.any(1) if method.keep is None else method.keep(feedback) & ~feedback.rewards.isnan()
    order = in_units(method, feedback, kept)
    steps, signal = steps.each(lambda values: values[order]), method.signal(feedback)[order]
    if method.survey is not None:
        with torch.no_grad():
            signal = method.survey(steps.each(Tensor.detach), signal)
    (found,) = torch.autograd.grad((method.weigh(steps.mask) * method.loss(steps, signal).values).sum(), rows.leaf, allow_unused=True)
    return torch.zeros_like(rows.leaf) if found is None else found


@pytest.mark.parametrize("name", LEARNED)
def test_other_rewards_are_another_gradient(name: str) -> None:
    kwargs, _ = ORACLES[name][1 if name == "bradley_terry_mixture" else 0]  # its hard one takes a score that these rows have not
    kind = min(METHODS[name](**kwargs).kinds)
    first, second = (gradient(METHODS[name](**kwargs), table(kind), other=other) for other in (False, True))
    size = float(first.abs().max())
    assert size > 0 and float((first - second).abs().max()) > 1e-3 * size


def test_those_that_follow_none_are_named_and_do_not() -> None:
    assert set(WITHOUT) <= set(METHODS)
    for name in WITHOUT:
        kwargs, _ = ORACLES[name][0]
        kind = min(METHODS[name](**kwargs).kinds)
        first, second = (gradient(METHODS[name](**kwargs), table(kind), other=other) for other in (False, True))
        assert torch.equal(first, second) and first.any()
