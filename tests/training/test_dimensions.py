"""Labels by dimension on their way from records to a method: in the order of scores, missing ones as NaN, unlabelled ones refused."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

import mmalign as mm
from mmalign.objectives.feedback import comparisons
from mmalign.records import Pair, Ranking, Thumb
from mmalign.training.records import dimensions
from mmalign.types import Feedback, UserError

NAN = math.nan
PAIRS = [
    Pair("p", "a", "b", labels={"brief": 0.0, "kind": 0.7}),
    Pair("q", "c", "d", NAN, ratings=({"kind": 2.0, "brief": 3.0}, {"kind": 2.0, "brief": 1.0})),
    Pair("r", "e", "f", labels={"kind": 1.0}, ratings=({"kind": 0.0}, {"kind": 5.0, "brief": 5.0})),
]


def told(records, scores=("kind", "brief"), method="bradley_terry", reads=frozenset()):
    policy = SimpleNamespace(kind="score", scores=list(scores), reads=reads)
    return dimensions.named(policy, getattr(mm.methods, method)(), iter(records), count=len(records))


def same(got, wanted):
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), equal_nan=True)


def feedback_of(records, rows):
    nothing = torch.full((rows,), NAN, dtype=torch.float64)
    return Feedback(nothing, torch.arange(rows) // 2, pairs=torch.arange(rows).view(-1, 2))


def test_labels_stand_in_the_order_of_scores_and_ratings_tell_where_there_are_none():
    method = told(PAIRS)
    told_of = dimensions.labelled(feedback_of(PAIRS, 6), method, PAIRS)
    same(told_of.strengths, [[0.7, 0.0], [0.5, 1.0], [1.0, NAN]])  # a label counts for more than ratings
    same(told_of.ratings, [[NAN, NAN], [NAN, NAN], [2.0, 3.0], [2.0, 1.0], [0.0, NAN], [5.0, 5.0]])
    told_of = dimensions.labelled(feedback_of(PAIRS, 6), told(PAIRS, ["brief", "sure"], "bradley_terry_gaussian"), PAIRS)
    same(told_of.strengths, [[0.0, 0.0], [1.0, 1.0], [NAN, NAN]])  # at the mean and at the variance


def test_a_ranking_s_best_and_worst_are_compared_by_their_ratings():
    rows = ({"kind": 1.0, "brief": 2.0}, {"kind": 3.0, "brief": 2.0}, {"kind": 2.0})
    records = [Ranking("p", ("a", "b", "c"), (0.5, 0.9, 0.1), ratings=rows)]
    paired = comparisons.best_and_worst(Feedback(torch.tensor(records[0].scores).double(), torch.zeros(3, dtype=torch.int64)))
    same(dimensions.labelled(paired, told(records), records).strengths, [[1.0, NAN]])  # b against c


def test_one_label_for_all_scores_and_policies_of_other_kinds_are_left_alone():
    plain = [Pair("p", "a", "b")]
    plainly = feedback_of(plain, 2)
    assert told(plain).scores == () and dimensions.labelled(plainly, told(plain), plain) is plainly
    assert told(PAIRS, ["a", "b"], "general_preference").scores == ()
    policy = SimpleNamespace(kind="token")
    assert dimensions.named(policy, mm.methods.dpo(), iter(PAIRS), count=3).scores == ()


@pytest.mark.parametrize(
    ("records", "scores", "method", "why"),
    [
        (PAIRS, ["kind", "deep"], "bradley_terry", r"nobody labelled deep \(policy.scores\) in the first 3; they label brief, kind"),
        ([PAIRS[1]], ["deep"], "bradley_terry", "policy.scores: got deep, records are labelled by brief, kind alone"),
        (PAIRS, ["kind", "a", "brief"], "general_preference", "takes an even number"),
        (PAIRS, ["kind"], "bradley_terry_gaussian", "takes an even number"),
        (PAIRS, ["kind"], "list_mle", "ranks outputs as wholes"),
        ([PAIRS[1]._replace(ratings=({"kind": NAN, "brief": 1.0}, {}))], ["kind", "brief"], "bradley_terry", "nobody labelled kind"),
    ],
)
def test_what_nobody_labelled_is_refused_by_name(records, scores, method, why):
    with pytest.raises(UserError, match=why):
        told(records, scores, method)


def test_mixed_scales_are_said_of_ratings_alone():
    rated = [Thumb("p", "a", NAN, ratings=({"kind": value, "brief": 10 * value},)) for value in (0.0, 4.0)]
    with pytest.warns(UserWarning, match=r"mixed scales \(kind 0 to 4, brief 0 to 40\)"):
        told(rated, method="score_regression")
    alike = [Thumb("p", "a", NAN, ratings=({"kind": value, "brief": value + 1},)) for value in (0.0, 4.0)]
    assert dimensions.scales(told(alike, method="score_regression"), alike) == "" and dimensions.scales(told(PAIRS), PAIRS) == ""


def test_annotators_of_whom_little_is_known_are_said():
    reads = frozenset({"annotator"})
    people = [pair._replace(id=str(number), annotator="ab"[number // 2]) for number, pair in enumerate(PAIRS)]
    with pytest.warns(UserWarning, match=r"one label is known of 1 of 2 annotators \(b\)"):
        told([*people, *people], reads=reads)  # a list that comes by twice
    with pytest.raises(UserError, match=r"no annotator is named in the first 3, and policy\.head reads them"):
        told(PAIRS, reads=reads)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told([*people, people[2]._replace(id="3")], reads=reads)
