"""Files about pictures and of pictures as they are published: media and labels by the columns they have."""

from __future__ import annotations

import base64
import io
import json
import warnings

import pytest
from PIL import Image

import mmalign as mm
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError
from tests.helpers.turns import assistant, gpt, human, user


def png(colour="red", size=(6, 4)):
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, format="PNG")
    return held.getvalue()


def written(place, rows, name="data.jsonl"):
    (place / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(place / name)


def about(place, row, **more):
    (place / "imgs").mkdir(exist_ok=True)
    for colour in ("red", "blue"):
        (place / "imgs" / f"{colour}.png").write_bytes(png(colour))
    (record,) = mm.data.picture_texts(written(place, [row]), cache=str(place / "cache"), **more).first(2)
    return record


def content(place, *parts):
    return [{"type": "image", "path": str(place / part)} if part.endswith(".png") else {"type": "text", "text": part} for part in parts]


DATA = "data:image/png;base64," + base64.b64encode(png()).decode()
INSIDE = {
    "data: address": {"type": "image_url", "image_url": {"url": DATA}},
    "data: address, responses": {"type": "input_image", "image_url": DATA},
    "Anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}},
    "base64": {"type": "image", "image": base64.b64encode(png()).decode()},
    "bytes and path": {"type": "image", "image": DATA, "path": None},
}


@pytest.mark.parametrize("name", INSIDE)
def test_pictures_inside_of_parts_are_written_once(tmp_path, name):
    row = {
        "messages": [{"role": "user", "content": [INSIDE[name], {"type": "text", "text": "What?"}]}, assistant("red")],
        "rejected_response": "blue",
    }
    pair = about(tmp_path, row)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.read_bytes() == png() and (pair.first, pair.second) == ("red", "blue")
    assert pair.prompt == [user([{"type": "image", "path": str(file)}, {"type": "text", "text": "What?"}])]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"conversations": [human("<image>\nWhat?"), gpt("red")], "image": "imgs/red.png"}, ["imgs/red.png", "What?"]),
        ({"messages": [user("<image>What?"), assistant("red")], "images": ["imgs/red.png"]}, ["imgs/red.png", "What?"]),
        (
            {"messages": [user("<image>What?"), assistant("red")], "images": [{"path": "imgs/red.png", "bytes": None}]},
            ["imgs/red.png", "What?"],
        ),
        ({"query": "What?", "response": "red", "images": ["imgs/red.png", "imgs/blue.png"]}, ["imgs/red.png", "imgs/blue.png", "What?"]),
        ({"question": "What?", "answer": "red", "img_path": "imgs/red.png"}, ["imgs/red.png", "What?"]),
        ({"Question": "What?", "Answer": "red", "Image": "imgs/red.png"}, ["imgs/red.png", "What?"]),
        ({"question": "What?", "answer": "red", "image": "file://"}, None),
        ({"question": "What?", "answer": "red", "photo": "imgs/red.png", "label": True}, ["imgs/red.png", "What?"]),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "imgs/red.png"}}, {"type": "text", "text": "What?"}],
                    },
                    assistant("red"),
                ]
            },
            ["imgs/red.png", "What?"],
        ),
    ],
)
def test_supervised_rows_and_thumbs_about_pictures(tmp_path, row, parts):
    if parts is None:
        row, parts = {**row, "image": f"file://{tmp_path}/imgs/red.png"}, ["imgs/red.png", "What?"]
    thumb = about(tmp_path, row)
    assert isinstance(thumb, Thumb) and (thumb.output, thumb.label) == ("red", 1.0)
    assert thumb.prompt == [user(content(tmp_path, *parts))]


def test_thumbs_down_and_rankings_about_pictures(tmp_path):
    assert about(tmp_path, {"prompt": "What?", "completion": "blue", "label": False, "image": "imgs/red.png"}).label == 0.0
    ranking = about(tmp_path, {"prompt": "What?", "completions": ["red", "blue"], "scores": [2, 1], "image": "imgs/red.png"})
    assert (
        isinstance(ranking, Ranking) and ranking.scores == (2, 1) and ranking.prompt == [user(content(tmp_path, "imgs/red.png", "What?"))]
    )


# ---- images that are the answers


def outputs(place, rows, name="data.jsonl", **more):
    for level in (10, 20, 30):
        (place / f"{level}.png").write_bytes(png((level, level, level)))
    path = place / name
    path.write_text(json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            (
                record.prompt,
                *(round(float(output.mean() * 255)) for output in record[1:3] if output is not None and not isinstance(output, float)),
                round(record.strength if isinstance(record, Pair) else record.label, 3),
            )
            for record in mm.data.pairs(str(path), **more).first(9)
        ]


@pytest.mark.parametrize(
    ("row", "records"),
    [
        (
            {"id": "0-1", "prompt": "p", "generations": ["10.png", "20.png", "30.png"], "ranking": [2, 1, 3]},  # ImageReward
            [("p", 10, 20, 0.0), ("p", 10, 30, 1.0), ("p", 20, 30, 1.0)],
        ),
        ({"prompt": "p", "file_path": ["10.png", "20.png"], "human_preference": [0, 1], "user_hash": "x"}, [("p", 10, 20, 0.0)]),  # HPDv2
        ({"prompt": "p", "image_path": ["10.png", "20.png"], "rank": [0, 1]}, [("p", 10, 20, 1.0)]),
        (
            {
                "prompt": "p",
                "path1": "10.png",
                "path2": "20.png",
                "choice_dist": [3, 1],
                "confidence": 0.99,
                "model1": "a",
                "model2": "b",
            },  # HPDv3
            [("p", 10, 20, 0.75)],
        ),
        ({"prompt": "p", "path1": "10.png", "path2": "20.png", "choice_dist": None, "confidence": 0.9}, [("p", 10, 20, 0.9)]),
        ({"prompt": "p", "path1": "10.png", "path2": "20.png"}, [("p", 10, 20, 1.0)]),
        ({"prompt_id": "1", "prompt": "p", "img_better": "10.png", "img_worse": "20.png"}, [("p", 10, 20, 1.0)]),  # ImageRewardDB's pairs
        ({"caption": "p", "chosen": "10.png", "rejected": "20.png"}, [("p", 10, 20, 1.0)]),
        ({"prompt": "p", "image": "10.png", "label": False}, [("p", 10, 0.0)]),
        ({"caption": "p", "image": "10.png", "label": 0.25}, [("p", 10, 0.25)]),
        ({"text": "p", "file_name": "10.png"}, [("p", 10, 1.0)]),  # an image folder
        ({"prompt": "p", "image": DATA, "label": True}, [("p", 85, 1.0)]),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_outputs(tmp_path, row, records, name):
    assert outputs(tmp_path, [row], name) == records


RATED = [
    {"image": "10.png", "prompt_id": "a", "prompt": "p", "rank": 2, "overall_rating": 4, "classification": "x"},
    {"image": "20.png", "prompt_id": "b", "prompt": "q", "rank": 1, "overall_rating": 4, "classification": "x"},
    {"image": "30.png", "prompt_id": "a", "prompt": "p", "rank": 1, "overall_rating": 6, "classification": "x"},
    {"image": "10.png", "prompt_id": "b", "prompt": "q", "rank": 1, "overall_rating": 4, "classification": "x"},
]


def test_pictures_of_one_prompt_in_rows_of_their_own(tmp_path):
    assert outputs(tmp_path, RATED) == [("p", 10, 30, 0.0), ("q", 20, 10, 0.5)]


@pytest.mark.parametrize("streaming", [False, True])
def test_imagerewarddb_of_the_library(tmp_path, streaming):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    rows = [
        {**row, "image": {"bytes": png((level, level, level)), "path": None}} for row, level in zip(RATED, (10, 20, 30, 10), strict=True)
    ]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "prompt_id": datasets.Value("string"),
            "prompt": datasets.Value("string"),
            "rank": datasets.Value("int64"),
            "overall_rating": datasets.Value("int64"),
            "classification": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    if streaming:
        with pytest.raises(UserError, match="has one picture to a row, and its pairs are within a prompt; takes streaming: false"):
            mm.data.hub_pairs(str(tmp_path / "set"))
        return
    pairs = mm.data.hub_pairs(str(tmp_path / "set"), streaming=False).first(9)
    assert [(pair.prompt, pair.strength, round(float(pair.first.mean() * 255))) for pair in pairs] == [("p", 0.0, 10), ("q", 0.5, 20)]


def test_pictures_of_a_list_in_a_data_set_stay_pictures(tmp_path):
    """They came as PIL images, and their repr was taken for a path."""
    datasets = pytest.importorskip("datasets")
    held = io.BytesIO()
    Image.effect_noise((16, 16), 90).save(held, "JPEG")
    (tmp_path / "set").mkdir()
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "chosen": datasets.Value("string"),
            "rejected": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
        }
    )
    row = {
        "prompt": ["What?"],
        "chosen": ["red"],
        "rejected": ["blue"],
        "images": [[{"bytes": held.getvalue(), "path": None}, {"bytes": png("blue"), "path": None}]],
    }
    datasets.Dataset.from_dict(row, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    (pair,) = mm.data.hub_picture_texts(str(tmp_path / "set"), cache=str(tmp_path / "cache")).first(2)
    first, second, text = pair.prompt[0]["content"]
    assert (tmp_path / "cache" / first["path"].rpartition("/")[2]).read_bytes() == held.getvalue() and second["path"] != first["path"]
    assert text == {"type": "text", "text": "What?"}


def test_pictures_that_somebody_decoded_are_written_without_loss(tmp_path):
    from mmalign.data.pictures import Media
    from mmalign.media import Limits

    path = Media(Limits(), None, str(tmp_path))("image", Image.new("RGB", (3, 2), (1, 2, 3)))
    assert Image.open(path).getpixel((0, 0)) == (1, 2, 3)


def test_hpdv2_names_files_of_the_folder_that_is_called_like_it(tmp_path):
    (tmp_path / "train").mkdir()
    for level in (10, 20):
        (tmp_path / "train" / f"{level}.jpg").write_bytes(png((level, level, level)))
    (tmp_path / "train.json").write_text(json.dumps([{"prompt": "p", "file_path": ["10.jpg", "20.jpg"], "human_preference": [1, 0]}]))
    (pair,) = mm.data.pairs(str(tmp_path / "train.json")).first(2)
    assert pair.strength == 1.0 and round(float(pair.first.mean() * 255)) == 10
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no such file: .*/10.jpg"):
        mm.data.pairs(str(tmp_path / "train.json"))
    assert len(mm.data.pairs(str(tmp_path / "train.json"), folder=str(tmp_path / "elsewhere")).first(2)) == 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "p", "image": "10.png", "rating": 3}, "column 'rating' says how good the image is"),
        ({"prompt": "p", "images": ["10.png", None], "ranking": [1, 2]}, "an image of the list is missing"),
        ({"prompt": "p", "image": "10.png", "label": 3}, "label is 3, takes 0..1"),
        ({"path1": "10.png", "path2": "20.png"}, "no text under 'prompt'"),
        ({"prompt": "p", "path1": "10.png", "path2": None}, "nothing under 'path2'"),
        ({"prompt": "p", "images": ["10.png", "20.png"], "ranking": [1]}, "takes one number for each of 2 images"),
    ],
)
def test_outputs_that_cannot_be_read(tmp_path, row, why):
    with pytest.raises(UserError) as error:
        outputs(tmp_path, [row])
    assert why in str(error.value)


def test_labels_of_pictures_are_a_files_own(tmp_path):
    up, silent = {"prompt": "p", "image": "10.png", "label": True}, {"prompt": "q", "image": "20.png"}
    assert outputs(tmp_path, [up, silent]) == [("p", 10, 1.0)] and outputs(tmp_path, [silent, up]) == [("q", 20, 1.0)]
