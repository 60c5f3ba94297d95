from __future__ import annotations

import csv
import io
import json
import math
import tarfile
from itertools import islice

import pytest
import torch
from PIL import Image

import mmalign as mm
from mmalign.data.pairs import listed
from mmalign.records import Drawn, Pair, Unread, read
from mmalign.types import UserError

ROWS = 7


def png(level, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, "PNG")
    return file.getvalue()


def rows(count=ROWS):
    """Bright images preferred to dark ones; how bright says which row it is."""
    return [{"prompt": f"prompt {n}", "chosen": png(100 + n), "rejected": png(n), "id": f"row {n}"} for n in range(count)]


def as_files(folder, originals=None):
    """The rows with paths, as an image folder has them."""
    (folder / "images").mkdir(parents=True)
    with_paths = []
    for n, row in enumerate(originals or rows()):
        for side in ("chosen", "rejected"):
            (folder / "images" / f"{n}-{side}.png").write_bytes(row[side])
        with_paths.append({**row, "chosen": f"images/{n}-chosen.png", "rejected": f"images/{n}-rejected.png"})
    return with_paths


def write(kind, folder):
    folder.mkdir()
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, as_files(folder))) + "\n")
        return folder
    if kind == "json":
        (folder / "data.json").write_text(json.dumps(as_files(folder)))
        return folder / "data.json"
    if kind == "csv":
        lines = as_files(folder)
        with open(folder / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys())
            writer.writeheader()
            writer.writerows(lines)
        return folder
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        structs = [{**row, **{side: {"bytes": row[side], "path": None} for side in ("chosen", "rejected")}} for row in rows()]
        parquet.write_table(pyarrow.Table.from_pylist(structs), folder / "a.parquet", row_group_size=3)
        return folder / "a.parquet"
    for number, part in enumerate((rows()[:4], rows()[4:])):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for row in part:
                files = {
                    "chosen.png": row["chosen"],
                    "rejected.png": row["rejected"],
                    "json": json.dumps({"prompt": row["prompt"], "id": row["id"]}).encode(),
                }
                for end, content in files.items():
                    member = tarfile.TarInfo(f"{row['id'].replace(' ', '')}.{end}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    return folder


KINDS = ("jsonl", "json", "csv", "parquet", "tar")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_pairs(kind, tmp_path):
    records = mm.data.pairs(str(write(kind, tmp_path / "data")))
    pairs = sorted(islice(records.stream(seed=0), ROWS), key=lambda pair: pair.id)
    for n, pair in enumerate(pairs):
        assert (pair.prompt, pair.id, pair.strength) == (f"prompt {n}", f"row {n}", 1.0)
        assert (pair.first[0, 0, 0] * 255).round() == 100 + n and (pair.second[0, 0, 0] * 255).round() == n
    assert records.broken == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_where_it_was_left(kind, tmp_path):
    path = str(write(kind, tmp_path / "data"))
    whole = [(pair.id, pair.position) for pair in islice(mm.data.pairs(path).stream(seed=3), 3 * ROWS)]
    assert {name for name, _ in whole[:ROWS]} == {name for name, _ in whole[ROWS : 2 * ROWS]} == {f"row {n}" for n in range(ROWS)}
    assert [name for name, _ in whole[:ROWS]] != [name for name, _ in whole[ROWS : 2 * ROWS]]
    for cut in (1, 4, ROWS - 1, ROWS, ROWS + 2):
        again = mm.data.pairs(path).stream(seed=3, start=whole[cut - 1][1])
        assert [(pair.id, pair.position) for pair in islice(again, ROWS)] == whole[cut : cut + ROWS]
    assert [pair.id for pair in islice(mm.data.pairs(path).stream(seed=4), ROWS)] != [name for name, _ in whole[:ROWS]]


def test_broken_records_are_put_aside_with_a_reason(tmp_path):
    originals = as_files(tmp_path)
    (tmp_path / "images" / "1-chosen.png").write_bytes(b"<html>")
    (tmp_path / "images" / "2-rejected.png").unlink()
    (tmp_path / "images" / "3-chosen.png").write_bytes(png(5)[:45])
    originals[4]["prompt"] = " "
    originals.append({**originals[0], "id": "row 7", "rejected": originals[0]["chosen"]})
    lines = [*map(json.dumps, originals), "{not json", "[1, 2]", json.dumps({"caption": "other columns"})]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    records = mm.data.pairs(str(tmp_path))
    pairs = list(islice(records.stream(seed=0), 9))
    assert {pair.id for pair in pairs} == {"row 0", "row 5", "row 6"}
    assert {name: why.split(".png: ")[-1].split()[0] for name, why in records.broken.items()} == {
        "row 1": "no", "row 2": "no", "row 3": "not", "metadata.jsonl:5": "no", "row 7": "both", "metadata.jsonl:9": "not",
        "metadata.jsonl:10": "got", "metadata.jsonl:11": "nothing",
    }  # fmt: skip
    assert min(pair.first.mean() for pair in pairs) > 0.3  # no black image in place of a broken one


def test_ties_and_missing_labels(tmp_path):
    strengths = ["1", "0.5", "", "0.25", None, "0", "0.5"]
    labelled = [{**row, "strength": strength} for row, strength in zip(as_files(tmp_path), strengths, strict=True)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    soft, drop = (mm.data.pairs(str(tmp_path), ties=ties) for ties in ("soft", "drop"))
    assert {pair.id: pair.strength for pair in islice(soft.stream(seed=0), 5)} == {
        "row 0": 1,
        "row 1": 0.5,
        "row 3": 0.25,
        "row 5": 0,
        "row 6": 0.5,
    }
    assert {pair.id for pair in islice(drop.stream(seed=0), 3)} == {"row 0", "row 3", "row 5"}
    list(islice(drop.stream(seed=0), 4))
    assert drop.dropped["unlabelled"] >= 2 and drop.dropped["ties"] >= 2 and drop.broken == {}


def test_images_of_different_sizes(tmp_path):
    originals = rows()
    originals[3]["rejected"] = png(3, (8, 6))
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, as_files(tmp_path, originals))))
    with pytest.raises(UserError, match=r"row 3: size \[3, 6, 8\], others have \[3, 8, 8\]"):
        mm.data.pairs(str(tmp_path))
    assert {tuple(pair.second.shape) for pair in islice(mm.data.pairs(str(tmp_path), size=[4, 6]).stream(seed=0), ROWS)} == {(3, 4, 6)}


def test_columns_of_any_name(tmp_path):
    renamed = [{"text": row["prompt"], "win": row["chosen"], "lose": row["rejected"], "p": 0.75} for row in as_files(tmp_path)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    records = mm.data.pairs(str(tmp_path), columns={"prompt": "text", "chosen": "win", "rejected": "lose", "strength": "p"})
    assert next(records.stream(seed=0)).strength == 0.75
    with pytest.raises(UserError, match=r"no usable pair .*columns lose, p, text, win look like no known schema"):
        mm.data.pairs(str(tmp_path))
    with pytest.raises(UserError, match=r"records.columns.better: unknown"):
        mm.data.pairs(str(tmp_path), columns={"better": "win"})


def test_mistakes(tmp_path):
    def refused(match, path, **more):
        with pytest.raises(UserError, match=match):
            mm.data.pairs(str(path), **more)

    refused("no such file", tmp_path / "none")
    refused("holds none of metadata.jsonl", tmp_path)
    (tmp_path / "a.txt").write_text("x")
    refused("got a.txt, takes", tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text("")
    refused("no usable pair", tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"x")
    refused("no parquet file", tmp_path / "a.parquet")
    (tmp_path / "a.tar").write_bytes(b"x" * 1024)
    refused("not readable as tar", tmp_path / "a.tar")
    refused("size: got 0", tmp_path / "a.jsonl", size=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_of_the_hugging_face_library(streaming, tmp_path, monkeypatch):
    """Pick-a-Pic's schema with its image feature, loaded from a folder of parquet files."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    labels = [(1, 0, True), (0, 1, True), (0.5, 0.5, True), (1, 0, False)]
    columns = {
        "caption": [f"caption {n}" for n in range(4)], "jpg_0": [png(100 + n) for n in range(4)], "jpg_1": [png(n) for n in range(4)],
        "label_0": [float(a) for a, _, _ in labels], "label_1": [float(b) for _, b, _ in labels], "has_label": [c for _, _, c in labels],
        "ranking_id": list(range(4)),
    }  # fmt: skip
    features = datasets.Features(
        caption=datasets.Value("string"), jpg_0=datasets.Image(), jpg_1=datasets.Image(), label_0=datasets.Value("float64"),
        label_1=datasets.Value("float64"), has_label=datasets.Value("bool"), ranking_id=datasets.Value("int64"),
    )  # fmt: skip
    structs = {**columns, **{side: [{"bytes": value, "path": None} for value in columns[side]] for side in ("jpg_0", "jpg_1")}}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(structs, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    records = mm.data.hub_pairs(str(tmp_path / "set"), streaming=streaming)
    pairs = list(islice(records.stream(seed=0), 3))
    assert {pair.prompt: pair.strength for pair in pairs} == {"caption 0": 1.0, "caption 1": 0.0, "caption 2": 0.5}
    assert all(torch.equal((pair.first * 255).round()[0, 0, 0], torch.tensor(100.0 + int(pair.id))) for pair in pairs)
    again = islice(records.stream(seed=0, start=pairs[1].position), 1)
    assert [pair.id for pair in again] == [pair.id for pair in pairs[2:]]
    with pytest.raises(UserError, match=r"records\.name"):
        mm.data.hub_pairs(str(tmp_path / "nothing"))


def test_a_list_is_shuffled_anew_in_every_pass():
    pairs = [Pair("p", torch.zeros(1), torch.ones(1), math.nan, str(n)) for n in range(5)]
    whole = [pair.id for pair in islice(listed(pairs).stream(seed=1), 15)]
    assert sorted(whole[:5]) == sorted(whole[5:10]) == list("01234") and whole[:5] != whole[5:10]
    assert [pair.id for pair in islice(listed(pairs).stream(seed=1, start=7), 8)] == whole[7:]


def test_an_output_of_a_list_is_no_better_than_itself():
    grey, asked = torch.full((1, 2, 2), 0.5), [{"role": "user", "content": "p"}]
    unlike, alike = Pair("p", "yes", "no"), Pair("p", grey, grey.clone(), labels={"sharp": 0.5})
    for strange in (Pair("p", "yes", "yes"), alike, alike._replace(strength=0.5, labels={"sharp": 1.0}), Pair("p", asked, [*asked], 0.0)):
        records = listed([unlike, strange, strange._replace(id="mine")])
        assert records.broken == dict.fromkeys(("records[1]", "mine"), "both sides are the same") and records.records == [unlike]
        with pytest.raises(UserError, match=r"^records: both sides of every pair are the same"):
            listed([strange])
    ties = [alike._replace(strength=strength) for strength in (0.5, math.nan)]
    kept = [*ties, Pair("p", "yes", "yes", other="q"), Pair("p", Drawn(), Drawn()), unlike]
    assert listed(kept).records is kept


def test_media_are_decoded_by_whom_they_are_for(tmp_path):
    """The same records in the same order, also those whose pictures turn out to be broken when they are read."""
    lines = as_files(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "images" / "3-rejected.png").write_bytes(png(3)[:50])
    records = mm.data.pairs(str(tmp_path))
    whole = list(islice(records.stream(seed=3), 6))
    unread = list(islice(records.undecoded(seed=3), 7))
    assert all(isinstance(record.first, Unread) and record.first.name.endswith("-chosen.png") for record in unread)
    cut = next(record for record in unread if record.id == "row 3")
    with pytest.raises(UserError, match=r"3-rejected\.png: "):
        read(cut)
    for record, other in zip(whole, map(read, (record for record in unread if record.id != "row 3")), strict=True):
        assert record._replace(first=0, second=0) == other._replace(first=0, second=0)
        assert record.first.equal(other.first) and record.second.equal(other.second)


def test_video_reward_s_rows_have_a_label_in_each_dimension(tmp_path):
    """Overall says nothing of the second row, so that its dimensions alone do; the third nobody judged; the last is no word of theirs."""
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(ord(name)))
    rows = ["a.png,b.png,x,A,B,same,A,1", "a.png,b.png,y,B,,,,2", "a.png,b.png,z,,,,,3", "a.png,b.png,z,A,A,A,maybe,4"]
    (tmp_path / "train.csv").write_text("\n".join(["path_A,path_B,prompt,VQ,MQ,TA,Overall,id", *rows]))
    records = mm.data.pairs(str(tmp_path / "train.csv"))
    found = {record.id: record for record in islice(records.stream(seed=0), 2)}
    assert found["1"].strength == 1.0 and found["1"].labels == {"VQ": 1.0, "MQ": 0.0, "TA": 0.5}
    assert math.isnan(found["2"].strength) and found["2"].labels == {"VQ": 0.0}
    list(islice(records.stream(seed=0), 4))
    assert records.dropped["unlabelled"] and "Overall: got 'maybe', takes A, B or same" in str(records.broken)
