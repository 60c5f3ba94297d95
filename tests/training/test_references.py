"""How sets of parameters follow the trained ones: against what a hand computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mmalign as mm
from mmalign.runs import checkpoint
from mmalign.samplers import kernels
from mmalign.training import references
from mmalign.training.settings import Reference
from mmalign.training.updates.learner import Learner
from mmalign.types import Method, UserError
from mmalign.worlds import gaussian


def policy() -> gaussian.GaussianPolicy:
    return gaussian.GaussianPolicy(gaussian.one_gaussian([0.7], [0.5]), gaussian.flow_levels(3), kernel=kernels.flow_sde())


def shift(policy: gaussian.GaussianPolicy, name: str = "trained") -> float:
    return float(policy.sets.tables()[name]["shift"].mean())


def taught(policy: gaussian.GaussianPolicy, method: Method, updates: list[float]) -> list[dict[str, float]]:
    """The sets' shifts at the start of each step, where an update adds a number to the trained ones'."""
    moves = references.plan(method, references.references(method, method.needs), {})
    references.prepare(policy, references.references(method, method.needs), moves)
    seen = []
    for step, update in enumerate(updates):
        references.move(policy, moves, step)
        seen.append({name: shift(policy, name) for name in policy.sets.tables()})
        with torch.no_grad():
            policy.parameters()["shift"].add_(update)
    return seen


def test_an_extragradient_step_goes_back_to_where_it_started() -> None:
    seen = taught(policy(), mm.methods.egpo(), [1.0, 10.0, 100.0, 1000.0, 0.0])
    assert [(row["trained"], row["half"]) for row in seen] == [(0, 0), (0, 1), (10, 10), (10, 110), (1010, 1010)]


def test_the_first_half_of_an_extragradient_step_leaves_no_trace_in_the_optimiser() -> None:
    given, alone = policy(), policy()
    optimizer = mm.adamw(rate=0.1, warmup=0, weight_decay=0.1, max_norm=1.0)
    learner = lambda: Learner(given, mm.methods.egpo(), optimizer, steps=6)  # noqa: E731
    taught, plain = learner(), torch.optim.AdamW(alone.parameters().values(), lr=0.1, weight_decay=0.1, fused=True)
    for step, gradient in enumerate([90.0, 1.0, -5.0, 2.0, 7.0, -0.3]):
        taught.begin(step)
        for parameter in given.parameters().values():
            parameter.grad = torch.full_like(parameter, gradient)
        taught.optimizer.step()
        if step % 2:  # the halves' gradients are not seen by an optimiser that takes the whole steps alone
            for parameter in alone.parameters().values():
                parameter.grad = torch.full_like(parameter, gradient)
            plain.step()
            assert shift(given) == shift(alone)
        kept = taught.tensors(), taught.state()  # a checkpoint between the halves holds all of it
        taught = learner()
        taught.load(*kept)


def test_a_round_starts_ahead_of_where_the_one_before_it_ended() -> None:
    seen = taught(policy(), mm.methods.accelerated_po(momentum=0.5, every=2), [1.0, 1.0, 1.0, 1.0, 0.0])
    # ended at 2 after 0: the next starts at 2 + (2 - 0) / 2 = 3; ended at 5: 5 + (5 - 2) / 2
    assert [row["trained"] for row in seen] == [0, 1, 3, 4, 6.5]
    assert [row["previous"] for row in seen] == [0, 0, 3, 3, 6.5]


def test_a_method_s_own_moves_can_be_changed_and_previous_is_there_by_itself() -> None:
    own = mm.methods.accelerated_po(every=3)
    assert [move.name for move in references.plan(own, ["previous"], {"previous": Reference(every=7)})] == [
        "start",
        "ended",
        "current",
        "previous",
    ]
    assert references.plan(own, ["previous"], {"previous": Reference(every=7)})[-1].every == 7
    assert [move.name for move in references.plan(mm.methods.inpo(), ["previous", "ref"], {})] == ["previous"]
    assert references.plan(mm.methods.dpo(), ["ref"], {}) == []
    with pytest.raises(UserError, match=r"references\.current: not a reference"):
        references.plan(own, ["previous"], {"current": Reference(shares={"ref": 1.0})})


def test_a_set_that_is_not_there_is_named() -> None:
    moves = references.plan(mm.methods.dpo(), ["ref"], {"ref": Reference(shares={"stranger": 1.0})})
    with pytest.raises(UserError, match=r"references\.ref\.shares: 'stranger' is no set of parameters here; takes current, ref, trained"):
        references.move(policy(), moves, 0)


def test_a_set_that_nothing_reads_is_said(recwarn: pytest.WarningsRecorder) -> None:
    method = mm.methods.flow_grpo(clip=0.2, beta=0.1)
    league = {"ref": Reference(every=2, shares={"old": 1.0}), "old": Reference(every=3)}
    references.load(policy(), league, runs="runs", method=method)
    assert not list(recwarn)
    line = "^references.rf: is kept, and nothing reads it; the method asks for ref; nearest: ref$"
    with pytest.warns(UserWarning, match=line):
        references.load(policy(), {"rf": Reference(every=2)}, runs="runs", method=method)


def test_a_league_of_earlier_policies() -> None:
    given, method = policy(), mm.methods.mnpo(shares={"last": 0.5, "before": 0.5})
    names = references.references(method, method.needs)
    moves = references.plan(method, names, {"before": Reference(every=2, shares={"last": 1.0}), "last": Reference(every=2)})
    references.prepare(given, names, moves)
    seen = []
    for step in range(6):
        references.move(given, moves, step)
        seen.append((shift(given, "before"), shift(given, "last")))
        with torch.no_grad():
            given.parameters()["shift"].add_(1.0)
    assert seen == [(0, 0), (0, 0), (0, 2), (0, 2), (2, 4), (2, 4)]
    with pytest.raises(UserError, match=r"method: refers to 'before', which is no set here; takes references\.before: \{from: FOLDER\}"):
        references.prepare(policy(), names, references.plan(method, names, {"last": Reference(every=2)}))


def test_a_set_comes_from_a_run_or_from_a_folder(tmp_path: Path) -> None:
    other, given = policy(), policy()
    with torch.no_grad():
        other.parameters()["shift"].fill_(3.0)
    other.sets.follow("ema", decay=0.0)
    with torch.no_grad():
        other.parameters()["shift"].fill_(4.0)
    checkpoint.save(tmp_path / "runs" / "before" / "checkpoints", 1, tensors=other.sets.tables(), state={})
    references.load(given, {"opponent": Reference(from_="before")}, runs=tmp_path / "runs")
    assert shift(given, "opponent") == 3.0 and shift(given) == 0.0
    (tmp_path / "folder").mkdir()
    save_file({key: value.detach().contiguous() for key, value in other.parameters().items()}, tmp_path / "folder" / "model.safetensors")
    references.load(given, {"opponent": Reference(from_=str(tmp_path / "folder"))}, runs="runs")
    assert shift(given, "opponent") == 4.0


def test_what_is_no_set_of_this_policy_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "other" / "model.safetensors")
    for stored, line in (
        ({"ema": Reference(from_="empty")}, r"references\.ema: not a reference; takes another name"),
        ({"dpo": Reference(from_="nowhere")}, r"references\.dpo: no folder nowhere, and no run of that name in"),
        (
            {"dpo": Reference(from_="empty")},
            r"references\.dpo: .*empty holds neither a checkpoint nor safetensors; takes a run, an ad",
        ),
        ({"dpo": Reference(from_="other")}, r"references\.dpo: got weights with no (shift|log_scale); takes those of the same model"),
    ):
        with pytest.raises(UserError, match=line):
            references.load(policy(), stored, runs=tmp_path)


def test_copies_do_not_follow() -> None:
    given = policy()
    references.move(given, references.plan(mm.methods.inpo(), ["previous"], {}), 0)
    with torch.no_grad():
        given.parameters()["shift"].add_(1.0)
    assert shift(given, "previous") == 0 and shift(given) == 1
