"""What is judged: where it lies, and that it stays what it was."""

from __future__ import annotations

import pytest
import torch

from mmalign.labelling.items import ITEMS, Item, Items, of_records
from mmalign.media import Limits, image
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError

LIMITS = Limits(bytes=2**20, pixels=10**6)


def items(folder, **origin):
    return Items(folder, {"made": "here", **origin})


def test_words_pictures_and_what_stays_of_them(tmp_path):
    made = items(tmp_path)
    pictures = torch.rand(2, 3, 6, 5)
    made.add("a line\u2028and more", [made.store("0-0", "yes\u2028no"), made.store("0-1", "no")], ("a", "b"), id="words")
    made.add([{"role": "user", "content": "q"}], [made.store(f"1-{place}", pictures[place]) for place in (0, 1)], ("a", "b"), id="seen")
    made.save()
    again = Items(tmp_path)
    assert [item.id for item in again.all] == ["words", "seen"] and again.all == made.all
    assert again.by_id["words"].outputs == ("yes\u2028no", "no") and again.by_id["seen"].kind == "image"
    read = image(again.path(again.by_id["seen"], 1), LIMITS)
    torch.testing.assert_close(read, pictures[1], atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_video_is_a_file_that_moves(tmp_path):
    pytest.importorskip("av", reason="the extra video is not installed")
    made = items(tmp_path)
    kind, name = made.store("0-0", torch.rand(3, 3, 16, 16))
    assert kind == "video" and name == "0-0.mp4" and (tmp_path / "outputs" / name).stat().st_size > 0


def test_another_origin_is_refused_and_the_first_goes_on(tmp_path):
    made = items(tmp_path, weights="1")
    made.add("q", [("text", "a"), ("text", "b")], ("m", "m"), id="0")
    made.save()
    before = (tmp_path / ITEMS).read_bytes()
    with pytest.raises(UserError, match="made with another weights"):
        items(tmp_path, weights="2")
    with pytest.raises(UserError, match="made with another seed"):
        items(tmp_path, weights="1", seed=3)
    assert (tmp_path / ITEMS).read_bytes() == before and len(items(tmp_path, weights="1").all) == len(Items(tmp_path).all) == 1


def test_a_folder_that_nothing_was_drawn_into_is_none(tmp_path):
    items(tmp_path)
    with pytest.raises(UserError, match="nothing to judge there yet"):
        Items(tmp_path)


def test_pairs_and_rankings_that_are_there_once_each(tmp_path):
    records = [Pair("q", "good", "bad", 1.0, "p"), Ranking("r", ("x", "y", "z"), (1.0, 2.0, 3.0), "k")]
    made = items(tmp_path)
    of_records(made, (record for _ in range(3) for record in records), None)
    assert [(item.id, item.outputs) for item in made.all] == [("p", ("good", "bad")), ("k", ("x", "y", "z"))]
    few = items(tmp_path / "few")
    of_records(few, records, 1)
    assert [item.id for item in few.all] == ["p"]


def test_pairs_without_names_are_told_apart_by_their_place(tmp_path):
    made = items(tmp_path)
    of_records(made, [Pair(f"q{number}", "good", "bad") for number in range(3)], None)
    assert [(item.id, item.prompt) for item in made.all] == [("0", "q0"), ("1", "q1"), ("2", "q2")]


@pytest.mark.parametrize(("records", "words"), [([Thumb("q", "a", 1.0, "t")], "t is one output with a label"), ([], "holds none")])
def test_other_records_are_refused(tmp_path, records, words):
    with pytest.raises(UserError, match=words):
        of_records(items(tmp_path), records, None)
    assert not (tmp_path / ITEMS).exists()


@pytest.mark.parametrize("output", [None, 3, torch.zeros(4), torch.zeros(1, 2, 3, 4, 5)])
def test_an_output_of_another_kind_is_refused(tmp_path, output):
    with pytest.raises(UserError, match="takes words, images"):
        items(tmp_path).store("0", output)


def test_an_item_is_of_one_kind_and_of_one_name(tmp_path):
    made = items(tmp_path)
    with pytest.raises(UserError, match="image and text"):
        made.add("q", [("text", "a"), ("image", "b.png")], ("m", "m"), id="0")
    made.add("q", [("text", "a"), ("text", "b")], ("m", "m"), id="0")
    with pytest.raises(UserError, match="second one of that name"):
        made.add("q", [("text", "a"), ("text", "b")], ("m", "m"), id="0")
    with pytest.raises(UserError, match="1 outputs by 1, takes two or more"):
        Item("1", "q", "text", ("a",), ("m",))


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "0"}', '{"id": "0", "prompt": "q", "kind": "text", "outputs": 1, "made_by": []}'])
def test_a_damaged_line_is_named(tmp_path, line):
    items(tmp_path).save()
    (tmp_path / ITEMS).write_text(f"{line}\n")
    with pytest.raises(UserError, match="line 1: is no item"):
        Items(tmp_path)
