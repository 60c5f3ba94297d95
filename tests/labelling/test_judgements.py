"""What was said: every word on the disk before it is answered, the last one counts, and the loaders read what comes of it."""

from __future__ import annotations

import json
import threading

import pytest
import torch

import mmalign as mm
from mmalign.labelling import judgements as room
from mmalign.labelling.items import Items
from mmalign.labelling.judgements import LOG, Judgement, Judgements
from mmalign.types import UserError


@pytest.fixture
def items(tmp_path):
    made = Items(tmp_path / "labels", {"made": "here"})
    for number in range(3):
        made.add(f"q{number}", [("text", f"first {number}"), ("text", f"second {number}")], ("one", "other"), id=str(number))
    made.add("ranked", [("text", word) for word in "xyz"], ("m0", "m1", "m2"), id="three")
    made.save()
    return made


def rows(items):
    return [json.loads(line) for line in (items.folder.parent / "labels.jsonl").read_text().split("\n") if line]


def judged(items):
    return Judgements(items, items.folder.parent / "labels.jsonl")


def test_what_a_word_means_in_the_file(items):
    room_ = judged(items)
    assert rows(items) == []
    room_.say(Judgement("0", "ann", ((1,), (0,))))
    room_.say(Judgement("1", "ann", ((0,), (1,)), grade="slightly", wrong={"1": [(0, 3)]}))
    room_.say(Judgement("2", "ann", ((0, 1),), bad=True))
    told = rows(items)
    assert [(row["chosen"], row["rejected"], row["strength"]) for row in told] == [
        ("second 0", "first 0", 1.0), ("first 1", "second 1", 0.75), ("first 2", "second 2", 0.5),
    ]  # fmt: skip
    assert told[0]["annotator"] == "ann" and told[1]["wrong_rejected"] == [[0, 3]]
    assert all(row["wrong_chosen"] == [] for row in told) and told[2]["wrong_rejected"] == []  # looked at, and nothing found


def test_a_ranking_is_all_of_its_pairs(items):
    judged(items).say(Judgement("three", "ann", ((2,), (0, 1))))
    assert {(row["id"], row["chosen"], row["rejected"], row["strength"]) for row in rows(items)} == {
        ("three:0-1", "x", "y", 0.5), ("three:0-2", "z", "x", 1.0), ("three:1-2", "z", "y", 1.0),
    }  # fmt: skip


def test_the_last_word_counts_skipping_too_and_undoing_brings_nothing_back_but_silence(items):
    room_ = judged(items)
    room_.say(Judgement("0", "ann", ((0,), (1,))))
    room_.say(Judgement("0", "bob", ((1,), (0,))))
    room_.say(Judgement("0", "ann", ((1,), (0,))))
    assert [(row["annotator"], row["chosen"]) for row in rows(items)] == [("bob", "second 0"), ("ann", "second 0")]
    room_.say(Judgement("0", "bob"))
    assert [row["annotator"] for row in rows(items)] == ["ann"]
    assert room_.undo("ann") == "0" and rows(items) == [] and room_.undo("ann") is None
    assert ("0", "bob") in room_.standing()


def test_a_later_start_knows_all_of_it(items):
    room_ = judged(items)
    for number in range(3):
        room_.say(Judgement(str(number), "ann", ((1,), (0,)), seconds=1.5, shown=(1, 0), wrong={"0": [(1, 2)]}))
    room_.undo("ann")
    before = (items.folder.parent / "labels.jsonl").read_bytes()
    again = judged(Items(items.folder))
    assert again.standing() == room_.standing() and not again.torn
    assert (items.folder.parent / "labels.jsonl").read_bytes() == before and len(again.standing()) == 2


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_line_cut_off_by_a_kill_is_gone_and_no_other(items, left):
    room_ = judged(items)
    room_.say(Judgement("0", "ann", ((1,), (0,))))
    log = items.folder / LOG
    whole = log.read_bytes()
    room_.say(Judgement("1", "ann", ((1,), (0,))))
    log.write_bytes(whole + log.read_bytes()[len(whole) :][:left])
    again = judged(items)
    assert again.torn and log.read_bytes() == whole and [row["id"] for row in rows(items)] == ["0"]
    again.say(Judgement("2", "ann", ((1,), (0,))))
    assert len(judged(items).standing()) == 2


def test_a_log_of_other_items_is_named_and_left_alone(items):
    judged(items).say(Judgement("0", "ann", ((1,), (0,))))
    log = items.folder / LOG
    damaged = log.read_bytes() + b'{"item": "gone", "annotator": "ann", "ranking": [], "shown": []}\n'
    log.write_bytes(damaged)
    with pytest.raises(UserError, match="line 2: is no judgement of these items"):
        judged(items)
    assert log.read_bytes() == damaged


def test_a_full_disk_keeps_nothing_of_a_word(items, monkeypatch):
    room_ = judged(items)
    room_.say(Judgement("0", "ann", ((1,), (0,))))
    before = (items.folder / LOG).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        room_.say(Judgement("1", "ann", ((1,), (0,))))
    assert (items.folder / LOG).read_bytes() == before and len(room_.standing()) == 1


def test_a_word_is_on_the_disk_before_it_is_in_the_file_of_pairs(items, monkeypatch):
    room_ = judged(items)
    seen = []
    write = room.write_text
    monkeypatch.setattr(room, "write_text", lambda path, text: (seen.append((items.folder / LOG).read_text()), write(path, text))[1])
    room_.say(Judgement("0", "ann", ((1,), (0,))))
    assert len(seen) == 1 and '"item": "0"' in seen[0]


def test_words_of_many_threads_are_all_there(items):
    room_ = judged(items)
    people = [
        threading.Thread(target=lambda who=who: [room_.say(Judgement(str(n), f"p{who}", ((1,), (0,)))) for n in range(3)])
        for who in range(8)
    ]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert len(rows(items)) == 24 == len(judged(items).standing())


@pytest.mark.parametrize(
    ("judgement", "words"),
    [
        (Judgement("9", "ann"), "takes one of the 4"),
        (Judgement("0", " "), "takes a name"),
        (Judgement("0", "x" * 81), "takes a name"),
        (Judgement("0", "ann", ((0,),)), "takes each of 2 outputs once"),
        (Judgement("0", "ann", ((0,), (0,))), "takes each of 2 outputs once"),
        (Judgement("0", "ann", ((0,), (2,))), "takes each of 2 outputs once"),
        (Judgement("0", "ann", ((0,), (1,)), grade="much"), "grade: got 'much'"),
        (Judgement("0", "ann", ((0,), (1,)), wrong={"0": [(0, 99)]}), "within 7 characters"),
        (Judgement("0", "ann", ((0,), (1,)), wrong={"0": [(3, 3)]}), "within 7 characters"),
        (Judgement("0", "ann", ((0,), (1,)), wrong={"5": [(0, 1)]}), "got a span of output 5"),
        (Judgement("0", "ann", ((0,), (1,)), wrong={"1": [(2, 4), (0, 3)]}), "which overlap"),
        (Judgement("0", "ann", ((0,), (1,)), wrong={"x": [(0, 1)]}), "got a span of output x"),
    ],
)
def test_what_is_no_judgement_is_refused_and_not_kept(items, judgement, words):
    room_ = judged(items)
    with pytest.raises(UserError, match=words):
        room_.say(judgement)
    assert rows(items) == [] and not (items.folder / LOG).exists()


def test_texts_reads_the_file(items):
    room_ = judged(items)
    room_.say(Judgement("0", "ann", ((1,), (0,))))
    room_.say(Judgement("0", "bob", ((0,), (1,)), grade="slightly"))
    records = mm.data.texts(str(items.folder.parent / "labels.jsonl"))
    stream = records.stream(seed=0)
    told = {record.annotator: record for record in (next(stream), next(stream))}
    assert (told["ann"].first, told["ann"].strength, told["bob"].first, told["bob"].strength) == ("second 0", 1.0, "first 0", 0.75)
    assert told["ann"].id != told["bob"].id and records.broken == {}


def test_pairs_reads_pictures_with_who_said_it(tmp_path, recwarn, monkeypatch):
    made = Items(tmp_path / "labels", {"made": "here"})
    pictures = torch.rand(2, 3, 4, 4)
    made.add("a digit", [made.store(f"0-{place}", pictures[place]) for place in (0, 1)], ("a", "b"), id="0")
    made.save()
    judged(made).say(Judgement("0", "ann", ((1,), (0,))))
    monkeypatch.chdir("/")  # paths are of the file's folder
    record = next(mm.data.pairs(str(tmp_path / "labels.jsonl")).stream(seed=0))
    torch.testing.assert_close(record.first, pictures[1], atol=0.5 / 255 + 1e-6, rtol=0)
    assert record.annotator == "ann" and record.id == "0@ann" and not [one for one in recwarn if "column" in str(one.message)]
