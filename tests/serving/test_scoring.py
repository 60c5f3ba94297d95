"""Questions to rewards in one thread: which become one call, and what each is told."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from mmalign.records import RefusedRow
from mmalign.serving.scoring import Asked, Full, Late, Scoring, scores_of
from mmalign.types import UserError

LONG = 300.0  # seconds, of what comes at once where nothing is wrong


class Gate:
    """A reward that waits until it is let through, and keeps what it was asked."""

    def __init__(self):
        self.open, self.begun, self.calls = threading.Event(), threading.Event(), []

    def __call__(self, outputs, prompts, *, odd=()):
        self.begun.set()
        assert self.open.wait(LONG)
        self.calls.append(list(outputs))
        if "bad" in outputs:
            raise UserError("takes others")
        return [float(len(output)) for output in outputs]


@pytest.fixture
def gate():
    return Gate()


def scoring(gate, *, together=8, patience=0.0, waiting=9):
    return Scoring({"gate": gate}, together=together, patience=patience, waiting=waiting)


def asked(*texts, alone=True, **more):
    return Asked("gate", ["p"] * len(texts), list(texts), {}, alone=alone, **more)


def test_questions_that_wait_become_one_call_where_their_rows_are_alone(gate):
    asking = scoring(gate, together=4)
    first = asking.ask(asked("a"))
    assert gate.begun.wait(LONG)  # it is at work; the rest waits
    more = [
        asking.ask(question)
        for question in (asked("bb"), asked("ccc", "d", alone=False), asked("e", "ff"), asked("g", "h"), asked("i", step=1))
    ]
    gate.open.set()
    assert [future.result(LONG).scores[""] for future in (first, *more)] == [[1.0], [2.0], [3.0, 1.0], [1.0, 2.0], [1.0, 1.0], [1.0]]
    assert gate.calls == [["a"], ["bb", "e", "ff"], ["ccc", "d"], ["g", "h"], ["i"]]
    asking.close()


def test_patience_waits_for_others(gate):
    gate.open.set()
    asking = scoring(gate, together=2, patience=LONG)
    futures = [asking.ask(asked("a")), asking.ask(asked("b"))]  # two rows are enough
    assert [future.result(LONG).scores[""] for future in futures] == [[1.0], [1.0]] and gate.calls == [["a", "b"]]
    asking.close()


def test_one_that_is_refused_does_not_spoil_the_others(gate):
    asking = scoring(gate)
    first, bad, good = asking.ask(asked("a")), asking.ask(asked("bad")), asking.ask(asked("b"))
    gate.open.set()
    assert first.result(LONG).scores[""] == [1.0] and good.result(LONG).scores[""] == [1.0]
    with pytest.raises(UserError, match="takes others"):
        bad.result(LONG)
    asking.close()


def test_late_full_cancelled_and_closed(gate):
    asking = scoring(gate, together=1, waiting=3)
    first = asking.ask(asked("a"))
    assert gate.begun.wait(LONG)
    late, gone, last = asking.ask(asked("b", ends=time.monotonic() - 1)), asking.ask(asked("c")), asking.ask(asked("d"))
    with pytest.raises(Full):
        asking.ask(asked("e"))
    assert gone.cancel() and asking.waiting == 3
    closing = threading.Thread(target=asking.close)
    closing.start()
    gate.open.set()
    assert first.result(LONG).scores[""] == [1.0] and last.result(LONG).scores[""] == [1.0]  # what is there is answered
    with pytest.raises(Late):
        late.result(LONG)
    closing.join(LONG)
    assert gate.calls == [["a"], ["d"]] and not asking._thread.is_alive()
    with pytest.raises(Full):
        asking.ask(asked("f"))


def test_what_ends_a_call_in_an_odd_way_does_not_end_the_thread(gate):
    gate.open.set()
    asking = scoring(gate)
    broken = Asked("gate", ["p"], ["x"], {"odd": 3})  # no list
    with pytest.raises(TypeError):
        asking.ask(broken).result(LONG)
    assert asking.ask(asked("a")).result(LONG).scores[""] == [1.0]
    asking.close()


def test_every_row_has_a_score_or_a_reason():
    def reward(outputs, prompts):
        if "unreadable" in outputs:
            raise RefusedRow(outputs.index("unreadable"), "too long")
        return [{"nan": float("nan"), "inf": float("inf"), "none": None}.get(output, 0.0) for output in outputs]

    scores, reasons = scores_of(reward, ["a", "nan", "unreadable", "inf", "none"], ["p"] * 5, {})
    assert scores == {"": [0.0, None, None, None, None]}
    assert reasons == {
        1: "the reward has no score of it", 2: "too long", 3: "the reward gave an infinite score", 4: "the reward has no score of it",
    }  # fmt: skip
    assert scores_of(reward, ["unreadable"], ["p"], {}) == ({"": [None]}, {0: "too long"})
    for odd, says in (
        (torch.zeros(2), r"shape \[2\] for 1 rows, takes \[1\]"), ([1.0, 2.0], "2 scores for 1 rows"), ("x", "returned str for 1 rows"),
        (["x"], "'x' as a score, takes numbers"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            scores_of(lambda outputs, prompts, odd=odd: odd, ["a"], ["p"], {})
