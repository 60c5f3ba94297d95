"""Memory that ends in a pass: the same once more with half of its rows, to the last bit what it is with that half from the start."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.runs import checkpoint
from mmalign.training.optimizers import sgd
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.micro_rows import MicroRows
from mmalign.types import Method, UserError
from mmalign.worlds.gaussian import GaussianPolicy
from tests.distributed.test_every_method import log
from tests.helpers.processes import together
from tests.helpers.small_run import method, online, policy, rows
from tests.recipes.test_online import equal, kept


def ends(monkeypatch: pytest.MonkeyPatch, *calls: int, error: type[Exception] = torch.OutOfMemoryError, above: int = 0) -> list[int]:
    """Passes with a graph of which those numbered so, from 1, find no memory, and all of more rows than ``above``, where it is given;
    returned are the rows of each."""
    own, sizes = GaussianPolicy.steps, list[int]()

    def steps(self: Any, rollout: Any, rows: torch.Tensor, *args: Any, **more: Any) -> Any:
        if torch.is_grad_enabled():
            sizes.append(len(rows))
            torch.rand(1)  # a method may draw
            if len(sizes) in calls or len(rows) > above > 0:
                raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return own(self, rollout, rows, *args, **more)

    monkeypatch.setattr(GaussianPolicy, "steps", steps)
    return sizes


class Counted:
    """State of a method that counts what its survey has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def dump(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def learner(kind: Method) -> tuple[Learner, list[Experience]]:
    taught = policy()
    rollout = taught.sample(["a", "b"], 4, torch.Generator().manual_seed(0))
    taught.remember(rollout, ["ref"], 8)
    with torch.no_grad():
        next(iter(taught.parameters().values())).add_(0.1)
    signal = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    return Learner(taught, kind, sgd(rate=1.0), steps=9), [Experience(rollout, signal, torch.arange(8))]


def counting() -> Method:
    state = Counted()

    def survey(steps: Any, signal: torch.Tensor) -> torch.Tensor:
        state.seen += len(signal)
        return signal * state.seen

    return replace(method(), survey=survey, state=state)


@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_update_is_done_again_as_if_it_had_had_half_the_rows(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """In the first pass, and in later ones, after gradients, draws and the survey's count."""
    with monkeypatch.context() as patched:
        ends(patched)
        torch.manual_seed(0)
        wanted, some = learner(counting())
        metrics = wanted.update(some, micro_rows=1, micro_steps=2, step=0)
        after = torch.rand(3)
    sizes, lines = ends(monkeypatch, call), list[str]()
    got, some = learner(counting())
    fitting = MicroRows(2, got, say=lines.append)
    torch.manual_seed(0)
    numbers = fitting.fit(lambda most: got.update(some, micro_rows=most, micro_steps=2, step=0), partial(got.micro_batches.largest, some))
    assert sizes == [2] * call + [1] * 8 and fitting.now == 1 and fitting.row == {"micro_rows": 1.0}
    assert numbers == metrics and got.updates == 1 and got.method.state.dump() == {"seen": 8} and torch.equal(torch.rand(3), after)
    assert equal(dict(got.policy.parameters()), dict(wanted.policy.parameters()))
    (line,) = lines
    assert line.startswith("out of memory (CUDA out of memory. Tried to allocate 2.00 GiB); done again with passes of 1 rows")


def test_half_is_half_of_what_a_pass_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows are allowed, and 8 there."""
    sizes = ends(monkeypatch, 1)
    got, some = learner(method())
    MicroRows(64, got, say=print).fit(
        lambda most: got.update(some, micro_rows=most, micro_steps=2, step=0), partial(got.micro_batches.largest, some)
    )
    assert sizes == [8, 4, 4]


def test_what_has_no_half_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, most in ((method(), 1), (mm.methods.gpg(), 0)):
        ends(monkeypatch, 1)
        got, some = learner(kind)
        largest = (partial(got.micro_batches.largest, some)) if most else (lambda most: 8)
        with pytest.raises(torch.OutOfMemoryError) as raised:
            MicroRows(most or 64, got, say=print).fit(lambda most: got.update(some, micro_rows=most, micro_steps=2, step=0), largest)  # noqa: B023
        assert raised.value.__notes__ == [f"in a pass of {most or 8} rows, which has no half"]


def test_a_step_of_the_optimiser_is_not_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    got, some = learner(method())

    def step() -> None:
        raise torch.OutOfMemoryError("no room for moments")

    monkeypatch.setattr(got.optimizer, "step", step)
    with pytest.raises(torch.OutOfMemoryError, match="no room for moments") as raised:
        MicroRows(8, got, say=print).fit(
            lambda most: got.update(some, micro_rows=most, micro_steps=2, step=0), partial(got.micro_batches.largest, some)
        )
    assert raised.value.__notes__ == ["in the update of the parameters itself"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_a_run_goes_on_with_half_says_so_and_is_resumed_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    sizes = ends(monkeypatch, 2, error=error)  # after preflight's
    half = online(tmp_path / "half", steps=3, batch={"micro_steps": 2, "micro_rows": 4})
    printed = capsys.readouterr().out
    assert printed.count("done again with passes of 2 rows, and so from here on: batch.micro_rows was 4") == 1
    assert sizes == [4, 4] + [2] * 12
    monkeypatch.undo()
    straight = online(tmp_path / "straight", steps=3, batch={"micro_steps": 2, "micro_rows": 2})
    rows_of_half = rows(half.path)
    assert [row.pop("micro_rows", None) for row in rows_of_half] == [None, 2.0, 2.0, 2.0, None]
    assert rows_of_half == rows(straight.path) and equal(kept(half.path, 3)[0], kept(straight.path, 3)[0])
    sizes = ends(monkeypatch)
    online(tmp_path / "half", steps=4, batch={"micro_steps": 2, "micro_rows": 4}, resume=True)
    assert sizes == [2] * 4
    online(tmp_path / "half", steps=5, batch={"micro_steps": 2, "micro_rows": 3}, resume=True)  # what the user says since counts
    assert sizes == [2] * 4 + [3, 1] * 2


def test_the_second_time_ends_the_run_and_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, 3, 10)
    with pytest.raises(UserError, match=r"step 3: out of memory \(CUDA out.*, again, with batch.micro_rows halved to 2\); takes a smaller"):
        online(tmp_path, batch={"micro_steps": 2, "micro_rows": 4})
    assert checkpoint.newest_step(tmp_path / "run" / "checkpoints") == 2


def test_processes_go_on_with_the_same_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two has no memory, in a later pass than the other's last; both go on, and the run is that of one process."""
    settings: dict[str, Any] = {"steps": 3, "batch": {"prompts": 4, "micro_rows": 4, "updates": 1}, "prompts": list("abcd")}
    online(tmp_path / "one", **settings)

    def train(rank: int) -> None:
        if rank:
            ends(monkeypatch, 3)
        online(tmp_path / "many", **settings)

    ended = together(2, train, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    rows_of_half, wanted = ([row for row in log(run) if row["phase"] == "train"] for run in (tmp_path / "many", tmp_path / "one"))
    assert [row.get("micro_rows") for row in rows_of_half] == [2.0, 2.0, 2.0]
    for row, other in zip(rows_of_half, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-9) and row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-9)

    def again(rank: int) -> None:
        if rank:
            ends(monkeypatch, 3, 5)
        online(tmp_path / "again", **settings)

    ended = together(2, again, tmp_path / "again processes")
    assert [code for code, _ in ended] == [2, 2] and "process 1: " in ended[0][1] and "step 1: out of memory" in ended[1][1]
