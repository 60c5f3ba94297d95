"""Preference data about pictures: the schemas people have, media by reference, and rows that cannot be used."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

import mmalign as mm
from mmalign.types import Prompt, UserError


def png(colour="red", size=(6, 4)):
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, format="PNG")
    return held.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    (tmp_path / "clip.mp4").write_bytes(b"not looked into")
    (tmp_path / "cut.png").write_bytes(png(size=(60, 60))[:60])
    return tmp_path


def read(place, rows, **more):
    (place / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return mm.data.picture_texts(str(place / "data.jsonl"), cache=str(place / "cache"), **more)


def shown(folder, name="red.png", kind="image"):
    return {"type": kind, "path": str(folder / name)}


SAID = {"question": "What is it?", "chosen": "A red square.", "rejected": "A cat."}
ANSWERS = {"chosen": "A red square.", "rejected": "A cat."}
ASKED = {"type": "text", "text": "What is it?"}
RED = {"image": "red.png", "chosen": "A red square.", "rejected": "A cat."}


@pytest.mark.parametrize(
    ("schema", "row", "content"),
    [
        ("rlhf_v", {"image": "red.png", "idx": 7, "ds_name": "RLHF-V", "text": json.dumps(SAID)}, ["red.png", "text"]),
        ("rlhf_v", {"image": "red.png", "idx": 7, "text": SAID}, ["red.png", "text"]),
        ("rlaif_v", {**RED, "question": "What is it?", "idx": "7", "origin_dataset": "x", "image_path": "gone.jpg"}, ["red.png", "text"]),
        ("mm_rlhf", {**RED, "prompt": "What is it?", "id": 7}, ["red.png", "text"]),
        ("mm_rlhf", {"video": "clip.mp4", "prompt": "What is it?", **ANSWERS, "id": 7}, ["clip.mp4", "text"]),
        ("povid", {
            "id": 7, "image": "red.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red square."}],
            "rejected_conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
        }, ["red.png", "text"]),
        ("preference", {
            "id": 7, "images": ["red.png", "blue.png"],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}, {"type": "image"}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A red square."}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
        }, ["red.png", "text", "blue.png"]),
        ("preference", {
            "id": 7, "images": ["red.png", "blue.png"], "prompt": "What is it?", "chosen": "A red square.", "rejected": "A cat.",
        }, ["red.png", "blue.png", "text"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("auto", [False, True])
def test_schemas(folder, schema, row, content, auto):
    (pair,) = read(folder, [row], schema="auto" if auto else schema).first(2)
    wanted = [ASKED if name == "text" else shown(folder, name, "video" if name.endswith("mp4") else "image") for name in content]
    assert pair.prompt == [{"role": "user", "content": wanted}]
    assert (pair.first, pair.second, pair.id, pair.strength) == ("A red square.", "A cat.", "7", 1.0)


def test_what_the_object_of_rlhf_v_says_goes_before_columns_of_the_same_name(folder):
    row = {"image": "red.png", "question": "Which?", "chosen": "x", "rejected": "y", "text": SAID}
    (pair,) = read(folder, [row], schema="rlhf_v").first(2)
    assert (pair.prompt[0]["content"][-1], pair.first, pair.second) == (ASKED, "A red square.", "A cat.")


def test_marks_say_where_each_medium_stands_in_a_conversation(folder):
    turns = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": "First <image> and then"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "<video>\n<image> this one."},
    ]
    row = {"prompt": turns, "chosen": "a", "rejected": "b", "images": ["red.png", "blue.png"], "video": "clip.mp4"}
    (pair,) = read(folder, [row]).first(2)
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    assert [turn["content"] for turn in pair.prompt] == [
        "Look.",
        [text("First"), shown(folder), text("and then")],
        "Yes?",
        [shown(folder, "clip.mp4", "video"), shown(folder, "blue.png"), text("this one.")],
    ]


def test_without_marks_the_first_turn_of_the_user_holds_the_media(folder):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "What?"}]
    (pair,) = read(folder, [{"prompt": turns, "chosen": "a", "rejected": "b", "image": "red.png"}]).first(2)
    assert [turn["content"] for turn in pair.prompt] == [[shown(folder), {"type": "text", "text": "Hi"}], "Yes?", "What?"]


def test_media_inside_of_the_data_are_written_once_under_the_name_of_what_is_in_them(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{**RED, "question": q, "image": {"bytes": png(), "path": "x.png"}, "idx": n} for n, q in enumerate(["a?", "b?"])]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    pairs = mm.data.picture_texts(str(tmp_path / "data.parquet"), cache=str(tmp_path / "cache")).first(3)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name == hashlib.sha256(png()).hexdigest()[:40] and file.read_bytes() == png()
    assert [pair.prompt[0]["content"][0]["path"] for pair in pairs] == [str(file)] * 2


def test_rows_without_media_are_of_texts(folder):
    (pair,) = read(folder, [{"prompt": "p", "chosen": "a", "rejected": "b", "images": []}]).first(2)
    assert pair.prompt == "p"


BROKEN = {
    "missing": ({**RED, "question": "q", "image": "gone.png"}, "no such file"),
    "cut": ({**RED, "question": "q", "image": "cut.png"}, "not decodable"),
    "empty": ({**RED, "question": "q", "image": {"bytes": None, "path": None}}, "nothing there"),
    "no json": ({"image": "red.png", "text": "{"}, "text: not JSON"),
    "no object": ({"image": "red.png", "text": "[1]"}, "takes an object with question"),
    "too many marks": ({**RED, "prompt": "<image><image> q"}, "2 places for media in the prompt and 1"),
    "other marks": ({**RED, "prompt": "<video>\nq"}, "1 places for media in the prompt and 0"),
    "mark in an answer": ({"image": "red.png", "prompt": "q", "chosen": "a\n<image>", "rejected": "b"}, "an answer holds <image>"),
    "strange part": ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}], "chosen": "a", "rejected": "b"}, "of type 'audio'"),
    "same": ({"image": "red.png", "question": "q", "chosen": "a", "rejected": "a"}, "are the same"),
    "address": ({**RED, "question": "q", "image": "https://example.org/x.png"}, "an address, which is not read"),
    "no list": ({**RED, "prompt": "q", "images": "red.png"}, "images: got str, takes a list"),
    "long": ({**RED, "question": "q" * 300}, "max_bytes is 200"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rows_that_cannot_be_used_are_put_aside_and_named(folder, name):
    row, why = BROKEN[name]
    nested = "text" in row
    good = {"image": "red.png", "text": {"question": "q", "chosen": "a", "rejected": "b"}} if nested else {**RED, "prompt": "q"}
    records = read(folder, [good, row if nested else {**row, "prompt": row.get("prompt", row.get("question"))}], max_text=200)
    pairs = list(islice(records.stream(seed=0), 3))
    assert len(pairs) == 3 and len({json.dumps(pair.prompt) for pair in pairs}) == 1
    assert list(records.broken) == ["data.jsonl:2"] and why in records.broken["data.jsonl:2"]


def test_videos_that_are_cut_off_are_put_aside_before_anything_decodes_them(folder):
    whole = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x48mdat" + bytes(64)  # boxes of 16 and 72 bytes
    for name, data in (("whole", whole), ("cut", whole[:-1]), ("shorter", whole[:20])):
        (folder / f"{name}.mp4").write_bytes(data)
    rows = [{"video": f"{name}.mp4", "prompt": "What is it?", **ANSWERS, "id": name} for name in ("whole", "cut", "shorter")]
    records = read(folder, rows)
    assert [record.id for record in records.first(9)] == ["whole"]
    assert {name: why.rpartition(": ")[2][:7] for name, why in records.broken.items()} == {"cut": "cut off", "shorter": "cut off"}


def test_a_file_that_breaks_later_is_found_out(folder):
    records = read(folder, [{**RED, "prompt": "q"}, {**RED, "prompt": "r", "image": "blue.png"}])
    (folder / "blue.png").write_bytes(png("blue", (50, 50))[:70])
    assert {pair.prompt[0]["content"][1]["text"] for pair in islice(records.stream(seed=0), 4)} == {"q"} and len(records.broken) == 1


def test_other_names_other_folders(folder):
    (folder / "pictures").mkdir()
    (folder / "red.png").rename(folder / "pictures" / "red.png")
    row = {"q": "p", "win": "a", "lose": "b", "img": "red.png"}
    columns = {"prompt": "q", "chosen": "win", "rejected": "lose", "image": "img"}
    (pair,) = read(folder, [row], columns=columns, folder=str(folder / "pictures")).first(2)
    assert pair.prompt[0]["content"][0]["path"] == str(folder / "pictures" / "red.png")


def test_mistakes(folder):
    for wrong, line in (
        ({"schema": "coco"}, "picture_texts.schema: got 'coco', takes 'auto' or 'preference' or 'rlhf_v'"),
        ({"ties": "no"}, "picture_texts.ties: got 'no'"),
        ({"columns": {"picture": "x"}}, "records.columns.picture: unknown"),
        ({"folder": str(Path("gone"))}, "records.folder: no such folder: gone"),
        ({"max_text": 0}, "picture_texts.max_text: got 0, takes 1 or more"),
    ):
        with pytest.raises(UserError, match=line):
            read(folder, [{**RED, "prompt": "q"}], **wrong)
    with pytest.raises(UserError, match=r"no usable pair \(1 broken.*columns caption look like no known schema"):
        read(folder, [{"caption": "x"}])
    for columns, gone in (({"image": "photo"}, "photo"), ({"images": "photos"}, "photos"), ({"prompt": "q", "image": "photo"}, "photo")):
        with pytest.raises(UserError, match=rf"no column '{gone}' \(columns: .*\); has chosen, image, q, rejected"):
            read(folder, [{**RED, "q": "What is it?"}], columns={"prompt": "q", **columns})  # and not the one that looks like it
    (folder / "data.jsonl").write_text(json.dumps({"prompt": "What?", "image": "red.png"}))
    with pytest.raises(UserError, match=r"no column 'photo' \(columns: \{image: photo\}\); has image, prompt"):
        mm.data.picture_prompts(str(folder / "data.jsonl"), columns={"image": "photo"})
    assert read(
        folder, [{"prompt": "words alone", **ANSWERS}, {**RED, "prompt": "q", "photo": "red.png"}], columns={"image": "photo"}
    ).first(2)


def test_parts_may_name_their_own_media(folder):
    own = [
        {"type": "image", "path": str(folder / "blue.png")},
        {"type": "text", "text": "q"},
        {"type": "image", "image": str(folder / "red.png")},
    ]
    (pair,) = read(folder, [{"prompt": [{"role": "user", "content": own}], "chosen": "a", "rejected": "b"}]).first(2)
    assert pair.prompt[0]["content"] == [shown(folder, "blue.png"), {"type": "text", "text": "q"}, shown(folder)]


def prompts(place, rows, **more):
    (place / "asked.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return mm.data.picture_prompts(str(place / "asked.jsonl"), cache=str(place / "cache"), **more)


def test_prompts_with_pictures(folder):
    rows = [
        {"question": "What is it?", "image": "red.png", "answer": "x"},
        {"question": "q", "image": "gone.png"},
        {"prompt": "no picture"},
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "image": "red.png"},
    ]
    with pytest.warns(UserWarning, match=r"2 rows are left out \(asked.jsonl:2: no such file"):
        conversations = prompts(folder, rows)
    talk = [{"role": "user", "content": [shown(folder), ASKED]}]
    assert conversations == [Prompt(talk, {"answer": "x"}), [{"role": "user", "content": "no picture"}]]
    assert prompts(folder, rows, limit=1) == conversations[:1]
    assert prompts(folder, [{"q": "What is it?", "i": "red.png"}], columns={"prompt": "q", "image": "i"}) == [talk]
    with pytest.raises(UserError, match=r"no usable row \(1 broken; asked.jsonl:1: no such file"):
        prompts(folder, rows[1:2])
    with pytest.raises(UserError, match="limit: got 0"):
        prompts(folder, rows, limit=0)


def literal(words):
    return {"type": "text", "text": words}


PART = {"type": "image", "path": "red.png"}
PLACES = {
    "HTML in an answer": (
        {"prompt": "List HTML5's elements.", "chosen": "<article>, <video>, <image>", "rejected": "b"},
        "List HTML5's elements.",
    ),
    "HTML in a prompt": ({"prompt": "What does <video> do?", "chosen": "a", "rejected": "b"}, "What does <video> do?"),
    "at the beginning": ({"prompt": "<video> is new in HTML5, is it?", "chosen": "a", "rejected": "b"}, "<video> is new in HTML5, is it?"),
    "parts beside words": (
        {"prompt": [{"role": "user", "content": [PART, literal("What is an <image> tag?")]}], "chosen": "a", "rejected": "b"},
        [shown, literal("What is an <image> tag?")],
    ),
    "parts that the row fills": (
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, literal("<video>?")]}],
            "chosen": "a",
            "rejected": "b",
            "images": ["red.png"],
        },
        [shown, literal("<video>?")],
    ),
    "another kind": ({**RED, "prompt": "Is this a <video> tag?"}, [shown, literal("Is this a <video> tag?")]),
    "a place and a word": ({**RED, "prompt": "<image>\nWhat does an <image> tag do?"}, [shown, literal("What does an <image> tag do?")]),
    "an answer about tags": (
        {**RED, "prompt": "Which tag?", "chosen": "the <image> tag", "rejected": "the <b> tag"},
        [shown, literal("Which tag?")],
    ),
    "parts of parquet": (
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{**literal("Q?"), "path": None}, {"type": "image", "text": None, "path": None, "image": "red.png"}],
                }
            ],
            "chosen": "a",
            "rejected": "b",
        },
        [literal("Q?"), shown],
    ),
    "one string in parts": (
        {
            "prompt": [{"role": "user", "content": ["Q?", {"type": "image_url", "image_url": {"url": "red.png"}}]}],
            "chosen": "a",
            "rejected": "b",
        },
        [literal("Q?"), shown],
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_words_that_look_like_places(folder, name):
    row, content = PLACES[name]
    (pair,) = read(folder, [row]).first(2)
    if isinstance(content, str):
        assert pair.prompt == content
    else:
        assert pair.prompt == [{"role": "user", "content": [part(folder) if callable(part) else part for part in content]}]
    assert pair.first == row["chosen"]


@pytest.mark.parametrize("key", ["image_path", "img", "picture", "Image", "jpg", "images", "image_url", "file_name"])
def test_pictures_under_the_names_that_people_give_them(folder, key):
    source = ["red.png"] if key == "images" else "red.png"
    (pair,) = read(folder, [{"question": "What is it?", **ANSWERS, key: source}]).first(2)
    assert pair.prompt == [{"role": "user", "content": [shown(folder), ASKED]}]
    assert prompts(folder, [{"question": "What is it?", key: source}]) == [pair.prompt]


def test_a_picture_beside_the_words_in_a_shard_is_the_prompt_s(folder):
    """As webdataset has it: one name, two endings."""
    members = {"000.png": png(), "000.json": json.dumps({"prompt": "What is it?", **ANSWERS}).encode()}
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    (pair,) = mm.data.picture_texts(str(folder / "shard.tar"), cache=str(folder / "cache")).first(2)
    picture, words = pair.prompt[0]["content"]
    assert Path(picture["path"]).read_bytes() == png() and words == ASKED


@pytest.mark.parametrize(
    "row", [{"screenshot": "red.png"}, {"left": {"path": "red.png", "bytes": None}}, {"views": ["red.png", "blue.png"]}, {"sound": "a.wav"}]
)
def test_media_under_a_name_that_nobody_knows_are_refused(folder, row):
    (key,) = row
    line = f"holds a medium under '{key}', which nobody reads"
    with pytest.raises(UserError, match=line):
        read(folder, [{"question": "What is it?", **ANSWERS, **row}])
    with pytest.raises(UserError, match=line):
        prompts(folder, [{"question": "What is it?", **row}])


def test_paths_inside_of_messages_start_at_the_data_file(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "red.png").write_bytes(png("blue"))
    monkeypatch.chdir(folder / "elsewhere")
    for part in ({"path": "red.png"}, {"image": "red.png"}, {"image": {"path": "red.png", "bytes": None}}, {"url": "red.png"}):
        row = {"prompt": [{"role": "user", "content": [{"type": "image", **part}, ASKED]}], **ANSWERS}
        (pair,) = read(folder, [row]).first(2)
        assert pair.prompt == [{"role": "user", "content": [shown(folder), ASKED]}]
    (pair,) = read(
        folder, [{**row, "prompt": [{"role": "user", "content": [{"type": "image", "path": "elsewhere/red.png"}, ASKED]}]}]
    ).first(2)
    assert pair.prompt[0]["content"][0] == shown(folder, "elsewhere/red.png")


def test_prompts_keep_their_columns_and_their_system_turn(folder):
    row = {"system": "Look.", "question": "What is it?", "image": "red.png", "answer": "red.png", "level": 3}
    (prompt,) = prompts(folder, [row])
    assert prompt.content == [{"role": "system", "content": "Look."}, {"role": "user", "content": [shown(folder), ASKED]}]
    assert prompt.columns == {"answer": "red.png", "level": 3}


def test_prompts_of_conversations_that_were_answered(folder):
    row = {
        "id": "x",
        "image": "red.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Red."}],
    }
    (prompt,) = prompts(folder, [row])
    assert prompt == Prompt([{"role": "user", "content": [shown(folder), ASKED]}], {"answer": "Red.", "id": "x"})
    (prompt,) = prompts(folder, [{**row, "answer": "red"}])
    assert prompt.columns == {"answer": "red", "id": "x"}
