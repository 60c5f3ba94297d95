"""The next step's records are read and decoded while a step trains, and nothing of a run is another for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmalign as mm
from mmalign.data.pictures import Media
from mmalign.policies.twins import visions
from mmalign.records import Pair, Unread, Unseen
from mmalign.training.records.ahead import Ahead, seen_prompts
from mmalign.training.rollouts.background import Background
from mmalign.types import UserError
from tests.helpers.flat import transformers
from tests.recipes.test_refused_records import named, rows, run_of


class Source:
    """Records of which every third cannot be read, and the tenth ends all."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        for number in range(start, 9):
            if number % 3 == 2:
                self.broken[str(number)] = "no"
            else:
                yield Pair("q", Unread(number, str(number), self.decode), "b", 1.0, str(number))
        raise UserError("no more")

    def decode(self, number: int) -> str:
        if number == 4:
            raise UserError("cut off")
        return f"picture {number}"


def test_records_come_in_their_order_and_so_do_those_that_cannot_be_read() -> None:
    source = Source()
    with Background() as background:
        ahead = Ahead(source.stream(seed=0), source, background)
        assert next(ahead).id == "0" and not ahead.broken
        ahead.fill(9, slice(0, 3))
        assert [next(ahead).id for _ in range(2)] == ["1", "3"]
        assert list(source.broken) == ["2", "5", "8"] and list(ahead.broken) == ["2"]
        read = {output.source: value for output, value in ahead.decoded.items()}
        assert read.keys() == {1, 3, 4} and read[3] == "picture 3" and str(read[4]) == "cut off"  # of the three that are its own
        assert [next(ahead).id for _ in range(3)] == ["4", "6", "7"] and list(ahead.broken) == ["2", "5"]
        with pytest.raises(UserError, match="no more"):
            next(ahead)
        assert list(ahead.broken) == ["2", "5", "8"]


def test_the_caller_goes_on_while_records_are_read() -> None:
    training = threading.Event()

    def stream() -> Iterator[Any]:
        assert training.wait(300), "nobody trained meanwhile"
        yield Pair("q", "a", "b", 1.0, "0")

    with Background() as background:
        ahead = Ahead(stream(), Source(), background)
        ahead.fill(1, slice(0, 1))
        training.set()
        assert next(ahead).id == "0"


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Twenty rows about pictures of their own, of which the last cannot be used; every picture that is looked at, and in which thread."""
    looks: list[tuple[str, str]] = []
    lines = []
    for number in range(20):
        Image.new("RGB", (32, 32), (number * 12, 0, 90)).save(tmp_path / f"{number}.png")
        lines.append({"prompt": "what?", "chosen": "red", "rejected": f"blue {number}", "image": f"{number}.png"})
    (tmp_path / "19.png").write_bytes((tmp_path / "19.png").read_bytes()[:60])
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    of = Media._look

    def counted(files: Media, kind: str, path: str) -> None:
        if path not in {seen for seen, _, _ in files.seen}:
            looks.append((Path(path).name, threading.current_thread().name.partition("_")[0]))
        of(files, kind, path)

    monkeypatch.setattr(Media, "_look", counted)
    return looks


def test_pictures_are_looked_at_by_those_whose_rows_they_are(tmp_path: Path, looks: list[tuple[str, str]]) -> None:
    records = mm.data.picture_texts(str(tmp_path / "rows.jsonl"))
    assert len(looks) == 16  # at the start, whether they are what the schema says
    stream = records.undecoded(seed=0)
    prompts = [next(stream).prompt for _ in range(20)]
    assert len(looks) == 16 and isinstance(prompts[0][0]["content"][0]["path"], Unseen)
    own = [prompt for prompt in prompts if int(Path(prompt[0]["content"][0]["path"]).stem) in (3, 17)]
    seen = seen_prompts([*own, *prompts], slice(0, 2))
    assert [name for name, _ in looks[16:]] == ["17.png"]  # the other one was among the first
    assert type(seen[0][0]["content"][0]["path"]) is str and seen[2:] == prompts


def test_a_run_that_looks_ahead_is_the_run_that_does_not(
    tmp_path: Path, looks: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, steps: int, **more: Any) -> Any:
        policy = transformers(*visions.twin("LlavaForConditionalGeneration"), max_completion=16, device="cpu", lora={"rank": 2})
        records = mm.data.picture_texts(str(tmp_path / "rows.jsonl"))
        looks.clear()
        return run_of(tmp_path, records, policy=policy, steps=steps, name=name, batch={"records": 5, "micro_rows": 10}, **more)

    ahead = train("ahead", 4)
    names, threads = zip(*looks, strict=True)
    assert "mmalign-background" in threads and set(names) == {"16.png", "17.png", "18.png", "19.png"}
    train("cut", 2)
    cut = train("cut", 4, resume=True)
    monkeypatch.setattr(Ahead, "fill", lambda *given: None)
    plain = train("plain", 4)
    assert {thread for _, thread in looks} == {"MainThread"}
    assert [entry["id"] for entry in named(plain)] and "19.png" in named(plain)[0]["why"]
    for run in (ahead, cut):
        assert rows(run) == rows(plain) and named(run) == named(plain)
