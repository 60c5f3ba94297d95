"""Offline runs some of whose rows the policy draws itself."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.data.own import OWN
from mmalign.records import Drawn, Pair, Thumb
from mmalign.training.records.own_rows import OwnRows, finished
from tests.distributed.test_every_method import CLOSE_IN_FLOAT32, differences
from tests.helpers.processes import together
from tests.recipes.test_offline import brightness, log, offline, policy

CALL = {"num_inference_steps": 2}


@pytest.fixture
def pairs():
    rng = torch.Generator().manual_seed(0)
    bright, dark = (torch.rand(12, 1, 8, 8, generator=rng) * 0.4 + shift for shift in (0.6, 0.0))
    return [Pair(f"a {number % 3}", bright[number], dark[number], 1.0, f"pair {number}") for number in range(12)]


def one_pass(records):
    stream = records.stream(seed=0)
    return [next(stream) for _ in range(12)]


def test_good_outputs_stand_against_drawn_ones(pairs):
    turned = [pair._replace(first=pair.second, second=pair.first, strength=0.0) for pair in pairs]
    for records in (pairs, turned, [Thumb(pair.prompt, pair.first, 1.0, pair.id) for pair in pairs]):
        rows = one_pass(mm.data.against_own(records))
        assert {id(row.first) for row in rows} == {id(pair.first) for pair in pairs} and all(row.second == Drawn() for row in rows)
    with pytest.raises(mm.types.UserError, match="nothing good"):
        mm.data.against_own([Thumb("a 1", pairs[0].first, 0.0)])


def test_rows_are_drawn_under_the_set_that_the_method_names_and_anew_in_every_pass(pairs):
    trained, method = policy(), mm.methods.seppo()
    records = mm.data.against_own(pairs, call=CALL)
    author = OwnRows(trained, method, seed=0, rows_at_once=4)
    trained.sets.keep("previous")
    author.began = True
    stream = records.stream(seed=0)
    first, second = [next(stream) for _ in range(12)], [next(stream) for _ in range(12)]
    made = finished(records, first, author, mm.distributed.team.ALONE)
    with torch.no_grad():
        for parameter in trained.parameters().values():
            parameter += 0.1  # previous stays what it was
    again = finished(records, first, author, mm.distributed.team.ALONE)
    by_name = {row.id: row for row in finished(records, second, author, mm.distributed.team.ALONE)}
    for before, after in zip(made, again, strict=True):
        assert torch.equal(before.second, after.second) and not torch.equal(before.second, by_name[before.id].second)
    author.method = mm.methods.flow_dpo()  # whose rows are the current policy's
    assert not torch.equal(finished(records, first, author, mm.distributed.team.ALONE)[0].second, made[0].second)


def test_soft_labels_are_of_both_rows_rewards(pairs):
    records = mm.data.against_own(pairs, call=CALL, rewards={"bright": brightness})
    author = OwnRows(policy(), mm.methods.subject_rpo(), seed=0, rows_at_once=4)
    for row in finished(records, one_pass(records), author, mm.distributed.team.ALONE):
        apart = row.first.mean() - row.second.mean()
        assert row.strength == pytest.approx(float(apart.sigmoid()), abs=1e-6) and row.scores[0] == pytest.approx(float(row.first.mean()))


def test_own_pairs_are_ranked_by_the_implicit_reward(pairs):
    trained = policy()
    records = mm.data.self_ranked(pairs, call=CALL, share=1.0, candidates=3, keep=0.5, looks=8)
    trained.sets.keep("previous")
    trained.sets.keep("ref")
    with torch.no_grad():
        for name, value in trained.sets.sets["previous"].items():
            value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    author = OwnRows(trained, mm.methods.flow_dpo(), seed=0, rows_at_once=8)
    author.began = True
    rows = finished(records, one_pass(records), author, mm.distributed.team.ALONE)
    assert all(row.annotator == OWN and row.scores[0] > row.scores[1] for row in rows)
    gaps = torch.tensor([row.scores[0] - row.scores[1] for row in rows])
    kept = torch.tensor([row.strength == 1.0 for row in rows])
    assert int(kept.sum()) == 6 and gaps[kept].min() >= gaps[~kept].max()
    prompts, names = [row.prompt for row in rows], [f"other {place}" for place in range(12)]
    best, worst = (author.gains(prompts, outputs, [*range(12)], by="previous", looks=12, names=names)
                   for outputs in ([row.first for row in rows], [row.second for row in rows]))  # fmt: skip
    assert sum(one > other for one, other in zip(best, worst, strict=True)) >= 10  # with noise of its own
    author.began = False
    assert not any(row.strength == 1.0 for row in finished(records, one_pass(records), author, mm.distributed.team.ALONE))


def test_which_records_become_own_pairs_does_not_depend_on_where_a_run_begins(pairs):
    records = mm.data.self_ranked(pairs, share=0.5)
    stream = records.stream(seed=0)
    whole = [next(stream) for _ in range(48)]
    later = records.stream(seed=0, start=whole[20].position)
    assert [next(later).annotator for _ in range(27)] == [row.annotator for row in whole[21:]]
    own = [row.annotator == OWN for row in whole]
    assert 0.25 < sum(own) / 48 < 0.75 and own[:12] != own[12:24]


METHODS = {
    "seppo": (lambda: mm.methods.seppo(beta=100.0, every=2), lambda pairs: mm.data.against_own(pairs, call=CALL), {}),
    "sail": (
        lambda: mm.methods.flow_dpo(beta=100.0), lambda pairs: mm.data.self_ranked(pairs, call=CALL, candidates=2, looks=1),
        {"references": {"previous": {"every": 2}}},
    ),
    "rpo": (
        lambda: mm.methods.subject_rpo(beta=100.0),
        lambda pairs: mm.data.against_own(pairs, call=CALL, rewards={"bright": brightness}), {},
    ),
    "self_npo": (lambda: mm.methods.sft(), lambda pairs: mm.data.own_samples(["a 1", "a 2"], by="ref", call=CALL), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path, pairs):
    method, records, more = METHODS[name]
    evaluation = {"every": 4, "samples": 1}
    whole = offline(tmp_path / "whole", records(pairs), method=method(), evaluation=evaluation, **more)
    offline(tmp_path / "parts", records(pairs), method=method(), steps=3, evaluation=evaluation, run={"checkpoint_every": 1}, **more)
    resumed = offline(
        tmp_path / "parts", records(pairs), method=method(), resume=True, evaluation=evaluation, run={"checkpoint_every": 1}, **more
    )
    rows = [[row for row in log(run) if row["phase"] == "train"] for run in (whole, resumed)]
    assert rows[0] == rows[1] and whole.summary["status"] == "finished"
    for key, value in whole.policy.parameters().items():
        assert torch.equal(value, resumed.policy.parameters()[key]), key


def test_a_set_that_nothing_makes_is_refused_before_anything_is_trained(tmp_path, pairs):
    with pytest.raises(
        mm.types.UserError, match=r"records\.by: got 'previous', which nothing makes; takes current, .*references\.previous"
    ):
        offline(tmp_path, mm.data.self_ranked(pairs, call=CALL, candidates=2))
    assert not (tmp_path / "run").exists()


def test_two_processes_draw_and_rank_what_one_does(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)
    kind = policy()
    before = {name: parameter.detach().clone() for name, parameter in kind.parameters().items()}

    def train(folder):
        kind.sets.sets.clear()
        kind.sets.load({"trained": before, "ref": before})
        records = mm.data.self_ranked(pairs, call=CALL, candidates=3, share=0.7, looks=2)
        more = {"batch": {"records": 5}, "evaluation": {"every": 9, "samples": 1}, "references": {"previous": {"every": 1}}}
        offline(folder, records, policy=kind, steps=3, **more)

    train(tmp_path / "one")
    ended = together(2, lambda rank: train(tmp_path / "two"), tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    apart = differences(tmp_path / "one", tmp_path / "two", CLOSE_IN_FLOAT32)
    assert not [line for line in apart if ": pixels/" not in line]  # statistics of pixels are sums of float32 in another order


def test_everything_said_is_turned_round(pairs):
    records = mm.data.turned([pair._replace(strength=0.75, scores=(2.0, 1.0)) for pair in pairs])
    assert {(row.strength, *row.scores) for row in one_pass(records)} == {(0.25, -2.0, -1.0)}
    assert next(mm.data.turned([Thumb("a 1", pairs[0].first, 0.25)]).stream(seed=0)).label == 0.75
    rows = mm.data.turned([mm.records.Ranking("a 1", (pairs[0].first, pairs[0].second), (2.0, -1.0))])
    assert next(rows.stream(seed=0)).scores == (-2.0, 1.0)
