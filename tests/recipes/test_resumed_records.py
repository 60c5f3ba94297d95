"""A resume goes on in the stream of the records that its run began with: others are refused, from a file and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmalign as mm
from mmalign import files
from mmalign.data.pairs import listed
from mmalign.records import Pair
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

ROWS = [{"prompt": "abc", "chosen": word, "rejected": "x"} for word in ("one", "two", "three", "four")]
OTHERS = {
    "another order": ROWS[::-1],
    "another word": [*ROWS[:3], {**ROWS[3], "chosen": "fouR"}],
    "one more": [*ROWS, {**ROWS[0], "rejected": "y"}],
    "one less": ROWS[:3],
    "a label": [*ROWS[:3], {**ROWS[3], "chosen": ROWS[3]["rejected"], "rejected": ROWS[3]["chosen"]}],
}


def train(tmp_path: Path, records: Any, **more: Any) -> Any:
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=6)
    return mm.offline(
        policy, records, mm.methods.dpo(beta=0.1), batch={"records": 2}, evaluation={"prompts": ["ab"], "every": 9, "samples": 1},
        run={"folder": str(tmp_path), "name": "run", "trackers": (), "checkpoint_every": 1}, **more,
    )  # fmt: skip


def written(tmp_path: Path, rows: list[dict[str, str]]) -> Any:
    place = tmp_path / "rows.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return mm.data.texts(str(place))


def held(tmp_path: Path, rows: list[dict[str, str]]) -> Any:
    return [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


@pytest.mark.parametrize("given", [written, held])
def test_other_records_are_refused_and_the_same_go_on(given: Any, tmp_path: Path) -> None:
    train(tmp_path, given(tmp_path, ROWS), steps=1)
    for name, rows in OTHERS.items():
        with pytest.raises(UserError, match=r"records.*; undo that, or give the run another name"):
            train(tmp_path, given(tmp_path, rows), steps=2, resume=True)
            pytest.fail(name)
    assert train(tmp_path, given(tmp_path, ROWS), steps=2, resume=True).summary["steps"] == 2


def test_a_stream_of_ones_own_is_not_compared(tmp_path: Path) -> None:
    class Own:
        def __init__(self, rows: Any):
            self.inner, self.broken = listed(rows), dict[str, str]()

        def stream(self, *, seed: int, start: int = 0) -> Any:
            return self.inner.stream(seed=seed, start=start)

    train(tmp_path, Own(held(tmp_path, ROWS)), steps=1)
    assert train(tmp_path, Own(held(tmp_path, ROWS[::-1])), steps=2, resume=True).summary["steps"] == 2


def test_files_are_told_apart_by_all_they_hold_or_pieces_of_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a"
    place.write_bytes(bytes(300))
    assert files.digest([]) == ""
    for whole in (1000, 100):
        monkeypatch.setattr(files, "WHOLE", whole)
        monkeypatch.setattr(files, "PIECE", 4)
        before = files.digest([place])
        for at in (0, 299):
            place.write_bytes(bytes(at) + b"\1" + bytes(299 - at))
            assert files.digest([place]) != before
        place.write_bytes(bytes(301))
        assert files.digest([place]) != before
        place.write_bytes(bytes(300))
        assert files.digest([place]) == before
