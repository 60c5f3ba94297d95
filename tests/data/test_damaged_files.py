"""Files that are cut, damaged, or larger than they say: records, broken records or one line, and no more memory than a limit allows."""

from __future__ import annotations

import gzip
import io
import json
import runpy
import signal
import tarfile
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

import mmalign as mm
from mmalign.data._reading.parsing import excerpt, parsed
from mmalign.data._reading.tables import _size, blocks, in_order
from mmalign.media import Broken
from mmalign.types import UserError
from scripts.fuzz import data
from tests.helpers.processes import together

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fuzz" / "data.py"))
ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


def test_damaged_files_give_records_broken_records_or_one_line():
    endings, wrong = FUZZ["run"](400, 100_000)
    assert wrong == [] and sum(endings.values()) == 400 and min(endings.values()) > 20, endings


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", (json.dumps(ROW) + "\n").encode("utf-16") * 2, "is UTF-16, takes UTF-8"),
        ("a.csv", "prompt,chosen,rejected\na,b,c\n".encode("utf-16"), "is UTF-16, takes UTF-8"),
        ("b.csv", b"prompt;chosen;rejected\na;b;c\n", "parts its columns by ';', takes ','"),
        ("c.csv", b"prompt\tchosen\trejected\na\tb\tc\n", r"parts its columns by '\\t', takes ','"),
        ("d.tsv", b"prompt,chosen,rejected\na,b,c\n", "parts its columns by ',', takes ',' in .csv and a tab"),
    ],
)
def test_what_spreadsheets_write_otherwise_is_said(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, says, lambda path: mm.data.texts(path).first(9))
    refused(tmp_path / name, says, mm.data.prompts)


def test_a_column_may_have_a_comma_in_its_name(tmp_path):
    (tmp_path / "a.csv").write_text('"what, say"\n"a, b"\n', encoding="utf-8")
    assert mm.data.prompts(str(tmp_path / "a.csv"), key="what, say") == ["a, b"]


def test_damaged_files_of_arrow_are_no_other():
    endings, wrong = FUZZ["run"](60, FUZZ["ARROW"])
    assert wrong == [] and sum(endings.values()) == 60, endings


def refused(path, match, read=mm.data.texts, **more):
    with pytest.raises(UserError, match=match) as error:
        read(str(path), **more)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def broken(path, read=mm.data.texts):
    """The records of a file and what is said of the others."""
    records = read(str(path))
    return records.first(99), list(records.broken.values())


# ---- JSON

ODD = {
    "deep": "[" * 100_000,
    "deep objects": '{"prompt":' * 100_000,
    "deep and whole": '{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "a number of 5,000 digits": '{"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": ' + "9" * 5000 + "}",
    "a number that is too large": json.dumps({**ROW, "score_chosen": 10**400}),
    "infinite": '{"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1e999}',
    "a strength that is infinite": '{"prompt": "p", "chosen": "a", "rejected": "b", "strength": -Infinity}',
    "half a letter": '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
    "a number in place of text": '{"prompt": 1, "chosen": "a", "rejected": "b"}',
    "latin-1": '{"prompt": "é", "chosen": "a", "rejected": "b"}'.encode("latin-1"),
    "zeros": b"\0" * 50,
    "an id that is a list": json.dumps({**ROW, "id": [[1]], "strength": 7}),
}


@pytest.mark.parametrize("name", ODD)
def test_lines_that_nobody_can_read_are_broken(tmp_path, name):
    line = ODD[name] if isinstance(ODD[name], bytes) else ODD[name].encode()
    (tmp_path / "a.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n" + line + b"\n")
    records, why = broken(tmp_path / "a.jsonl")
    assert len(records) == 1 and len(why) == 1 and len(why[0]) < 400 and "\n" not in why[0]
    (tmp_path / "a.json").write_bytes(b"[" + json.dumps(ROW).encode() + b"," + line + b"]")
    try:
        records, why = broken(tmp_path / "a.json")
    except UserError as error:
        assert "a.json is not JSON" in str(error) and len(str(error)) < 400
    else:
        assert len(records) == 1 and len(why) == 1


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_lines_end_where_json_says_so(tmp_path, mark):
    text = f"warm{mark}er"
    escaped = text if mark not in "\x0b\x0c\x1c" else json.dumps(text)[1:-1]  # JSON does not allow these as they are
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "{escaped}", "chosen": "a", "rejected": "b", "image": "a.png"}}\n', encoding="utf-8")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (pair,) = mm.data.picture_texts(str(tmp_path / "a.jsonl")).first(2)
    assert pair.prompt[0]["content"][1]["text"] == text
    assert [prompt.content for prompt in mm.data.prompts(str(tmp_path / "a.jsonl"))] == [text]
    assert mm.data.source_images(str(tmp_path / "a.jsonl"))([text])["image"][0].size == (4, 4)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_tables_of_numbers_and_references_end_lines_where_json_says_so(tmp_path, mark):
    from mmalign.files import numbers
    from mmalign.reference_scores import read_reference

    rows = [{"prompt": f"warm{mark}er", "rewards": {"a": [1, None]}, "x": 2}, {"prompt": "p", "rewards": {"a": [3]}, "x": 4}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    path = str(tmp_path / "a.jsonl")
    assert numbers("fit", path, ["x"]) == [[2, 4]] and set(read_reference("calibrated", path)) == {f"warm{mark}er", "p"}
    for line in ("[" * 100_000, '{"prompt": "p", "rewards": {"a": [' + "1" + "0" * 400 + ']}, "x": 1' + "0" * 400 + "}"):
        (tmp_path / "a.jsonl").write_text(line)
        refused(path, "line 1: takes", lambda path: numbers("fit", path, ["x"]))
        refused(path, "line 1: takes", lambda path: read_reference("calibrated", path))


@pytest.mark.parametrize(("read", "name"), [(mm.data.prompts, "p.jsonl"), (mm.data.source_images, "p.jsonl"), (mm.data.prompts, "p.json")])
def test_other_readers_of_json(tmp_path, read, name):
    for text in ("[" * 100_000, '{"prompt": ' + "9" * 5000 + "}", '{"prompt"'):
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, "not JSON", read)


def test_prompts_of_rows(tmp_path):
    (tmp_path / "p.csv").write_text('prompt,answer\n"1 + 1,\n2 + 2",2\n')
    assert [(prompt.content, prompt.columns) for prompt in mm.data.prompts(str(tmp_path / "p.csv"))] == [("1 + 1,\n2 + 2", {"answer": "2"})]
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "p"}, {"prompt": "q"}]))
    assert mm.data.prompts(str(tmp_path / "p.json")) == ["p", "q"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "\\ud800"}')
    refused(tmp_path / "p.jsonl", "line 1: a prompt that is not Unicode", mm.data.prompts)
    (tmp_path / "p.tar").write_bytes(b"x")
    refused(tmp_path / "p.tar", r"prompts.path: got p.tar, takes text", mm.data.prompts)


# ---- CSV


def test_fields_of_any_length(tmp_path):
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\np,{'a' * 300_000},b\n")
    (pair,) = mm.data.texts(str(tmp_path / "a.csv")).first(2)
    assert len(pair.first) == 300_000


@pytest.mark.parametrize("limit", [131_072])
def test_the_limit_of_the_process_stays(tmp_path, limit):
    import csv

    test_fields_of_any_length(tmp_path)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("prompt,chosen,rejected\np,it’s,b\n".encode("cp1252"), r"a.csv is not UTF-8 \(byte 27; in cp1252 it would be '’'\)"),
        ("prompt,chosen,rejected\np,a,b\n".encode("utf-16"), "a.csv is UTF-16, takes UTF-8"),
        (b"prompt,prompt\na,b\n", "has two columns 'prompt', takes one of a name"),
        (b"prompt,chosen,rejected\np,a\n", "2 fields, the header has 3"),
        (b"prompt,chosen,rejected\np,a,b,c\n", "4 fields, the header has 3"),
        (b'prompt,chosen,rejected\np,a,"b\n', "not CSV: unexpected end of data"),
        (b'prompt,chosen,rejected\np,"a"x,b\n', "not CSV: ',' expected after '\"'"),
        (b'"prompt\n', "not CSV: unexpected end of data"),
        (b"", "no usable record"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, content, match):
    (tmp_path / "a.csv").write_bytes(content)
    refused(tmp_path / "a.csv", match)


def test_rows_around_a_broken_one_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\np,a,b\nq,a\n"r"x,a,b\ns,a,b\n')
    records, why = broken(tmp_path / "a.csv")
    assert [pair.prompt for pair in records] == ["p", "s"] and why[0] == "2 fields, the header has 3" and why[1].startswith("not CSV")


# ---- parquet


def parquet(path, rows, **more):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows), path, **more)
    return path


def test_a_damaged_group_is_one_broken_record(tmp_path):
    rows = [{**ROW, "prompt": f"p{n} " + "x" * 500} for n in range(8)]
    path = parquet(tmp_path / "a.parquet", rows, row_group_size=4, compression="gzip", use_dictionary=False)
    from pyarrow import parquet as library

    column = library.ParquetFile(path).metadata.row_group(1).column(0)
    end = column.data_page_offset + column.total_compressed_size
    content = bytearray(path.read_bytes())
    content[end - 30 : end - 10] = b"\xff" * 20
    path.write_bytes(bytes(content))
    records, why = broken(path)
    assert len(records) == 4 and len(why) == 1 and "not readable" in why[0]


def test_parquet_that_cannot_be_read(tmp_path):
    path = parquet(tmp_path / "a.parquet", [ROW] * 4)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"PAR1", b"PAR1" * 5, whole[:-8] + b"\xff\xff\xff\x7fPAR1", b""):
        path.write_bytes(content)
        refused(path, "a.parquet is no parquet file")


@pytest.mark.parametrize("nested", [False, True])
def test_a_text_that_many_rows_refer_to_is_held_once(tmp_path, nested):
    """A file of some KiB, each of whose 60 rows says the same 20 MB; nested: one of them says it a hundred times."""
    pyarrow = pytest.importorskip("pyarrow")
    count = 159 if nested else 60
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), ["x" * 20_000_000])
    if nested:
        column = pyarrow.ListArray.from_arrays(pyarrow.array([0, *range(100, 160)], pyarrow.int32()), column)
    table = pyarrow.table({"prompt": [f"p{n}" for n in range(60)], "chosen": column, "number": list(range(60))})
    path = parquet(tmp_path / "a.parquet", table, store_schema=False, dictionary_pagesize_limit=2**30, compression="zstd")
    del column, table
    before = pyarrow.total_allocated_bytes()
    count, read = blocks(str(path))[0].open()
    assert count == 60 and path.stat().st_size < 20_000 and pyarrow.total_allocated_bytes() - before < 2**28
    if nested:
        with pytest.raises(Broken, match=r"a row that unfolds to 2,000,000,\d+ bytes, takes at most 536,870,912"):
            read(0)
    row = read(59)
    assert row == {"prompt": "p59", "chosen": ["x" * 20_000_000] if nested else "x" * 20_000_000, "number": 59}


def test_numbers_that_many_rows_refer_to_are_counted(tmp_path):
    """A run of one number takes some bytes in the file, and eight in memory for each row."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"prompt": ["p"] * 200_000, "number": [7] * 200_000})
    path = parquet(tmp_path / "a.parquet", table, compression="zstd")
    stored = pyarrow.parquet.ParquetFile(path)
    assert _size(stored.metadata.row_group(0), stored.schema) == 200_000 * (8 + 4) and path.stat().st_size < 4_000


def test_a_group_that_unfolds(tmp_path):
    """600 MiB of one letter in a file of some KiB."""
    pyarrow = pytest.importorskip("pyarrow")
    long = pyarrow.chunked_array([pyarrow.array(["a" * 10 * 2**20])] * 60)
    table = pyarrow.table({"prompt": ["p"] * 60, "chosen": long, "rejected": ["b"] * 60})
    path = parquet(tmp_path / "a.parquet", table, compression="zstd", use_dictionary=False)

    def read():
        refused(path, r"a row group that unfolds to 6\d\d,\d+,\d+ bytes, takes at most 536,870,912")

    assert path.stat().st_size < 2**20 and peak(read) < 2**25


def test_arrow_that_ends_between_two_batches_is_refused(tmp_path):
    import pyarrow

    table = pyarrow.Table.from_pylist([ROW] * 4)
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
        stream.close()
    whole, records = (tmp_path / "a.arrow").read_bytes(), mm.data.texts(str(tmp_path / "a.arrow"))
    assert len(records.first(9)) == 4
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table.slice(0, 2))
    first = len((tmp_path / "b.arrow").read_bytes()) - 8
    (tmp_path / "b.arrow").write_bytes(whole[:first])  # pyarrow itself would give the first two rows
    refused(
        tmp_path / "b.arrow",
        r"b\.arrow is no arrow file, or a damaged one: it ends before its last batch does",
        lambda path: mm.data.texts(path).first(9),
    )
    (tmp_path / "c.arrow").write_bytes(b"")
    refused(tmp_path / "c.arrow", "c.arrow is no arrow file")


def test_text_of_parquet_that_is_no_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    odd = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\x02\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")])
    table = pyarrow.table({"prompt": odd, "chosen": ["a"], "rejected": ["b"]})
    refused(parquet(tmp_path / "a.parquet", table), r"a.parquet#0:1: not readable: .*UTF")
    rows = [{**ROW, "prompt": b"\xff\xfe"}]
    refused(parquet(tmp_path / "b.parquet", rows), "prompt: not UTF-8")


# ---- archives


def member(name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, io.BytesIO(content)


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            archive.addfile(*member(name, content))
    return path


def shard(place, name="a.tar", mode="w", more=()):
    return tar(place / name, [("1.json", json.dumps(ROW).encode()), ("2.json", json.dumps({**ROW, "prompt": "q"}).encode()), *more], mode)


def peak(read):
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_sparse_member_is_as_large_as_it_says(tmp_path):
    """Two KiB that unfold to 6 GiB."""
    size = 6 * 2**30
    info = tarfile.TarInfo("3.chosen.png")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "3.chosen.png",
        "GNU.sparse.realsize": str(size),
    }
    sparse = b"1\n" + f"{size}\n0\n".encode()
    info.size = 512
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(*member("1.json", json.dumps(ROW).encode()))
        archive.addfile(info, io.BytesIO(sparse.ljust(512, b"\0")))

    def read():
        records, why = broken(tmp_path / "a.tar")
        assert len(records) == 1 and why == [f"3.chosen.png: {size:,} bytes, takes at most {2**26:,}"]

    assert (tmp_path / "a.tar").stat().st_size < 20_000 and peak(read) < 2**25


def test_a_member_that_unfolds_is_as_large_as_it_is(tmp_path):
    """A compressed shard of a few KiB with a member of 80 MiB."""
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("3.txt")
    info.size = 80 * 2**20
    with gzip.open(path, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        archive.addfile(*member("1.json", json.dumps(ROW).encode()))
        archive.addfile(info, Zeros(info.size))

    def read():
        records, why = broken(path)
        assert len(records) == 1 and why == [f"3.txt: {info.size:,} bytes, takes at most {2**26:,}"]

    assert peak(read) < 2**25
    refused(path, r"1.json: 47 bytes, takes at most 40", mm.data.pairs, max_bytes=40)


class Zeros(io.RawIOBase):
    """A file of zeros."""

    def __init__(self, size):
        self.left = size

    def read(self, size=-1):
        count = self.left if size < 0 else min(size, self.left)
        self.left -= count
        return b"\0" * count


def test_headers_are_no_place_for_more(tmp_path):
    """A name of 300 MiB: tarfile reads it whole to know it."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 300 * 2**20
    with gzip.open(tmp_path / "a.tar", "wb", compresslevel=1) as packed:
        packed.write(long.tobuf(tarfile.GNU_FORMAT))
        for _ in range(300):
            packed.write(b"a" * 2**20)
        packed.write(b"\0" * 1024)

    def read():
        refused(tmp_path / "a.tar", "a part of 314,57.,... bytes, takes at most")

    assert peak(read) < 2**26


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compressed_shards_are_read_and_their_cuts_are_seen(tmp_path, mode):
    path = shard(tmp_path, mode=mode)
    assert [pair.prompt for pair in mm.data.texts(str(path)).first(3)] == ["p", "q"]
    whole = path.read_bytes()
    for cut in (10, 1024, 1500, 2048) if mode == "w" else (10, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:cut])
        refused(path, "a.tar is not readable as tar")


def test_archives_that_end_early_or_go_on(tmp_path):
    whole = shard(tmp_path).read_bytes()
    members = whole[: 4 * 512]
    path = tmp_path / "a.tar"
    path.write_bytes(members)  # cut between members: no end
    refused(path, "cut or damaged at byte 2,048")
    path.write_bytes(members[:1024] + b"x" * 512 + members[1536:] + b"\0" * 1024)  # a header that is none, in the middle
    refused(path, "cut or damaged at byte 1,024")
    path.write_bytes(whole + whole)  # cat a.tar a.tar
    refused(path, "goes on behind its end")
    path.write_bytes(members + b"\0" * 1024)
    assert len(mm.data.texts(str(path)).first(3)) == 2


def test_text_of_an_archive_that_is_no_text(tmp_path):
    path = shard(tmp_path, more=[("3.txt", b"\xff\xfe"), ("4.json", b"[" * 100_000), ("5.json", b"3")])
    records, why = broken(path)
    assert len(records) == 2 and [line.partition(":")[0] for line in why] == ["txt", "not JSON that can be read", "json"]


# ---- paths


@pytest.mark.parametrize("path", ["x" * 300 + ".png", "a/" * 3000 + "b.png", "a\0b.png", "~/a.png", "../" * 50 + "x.png"])
def test_paths_that_no_file_can_have(tmp_path, path):
    row = {**ROW, "image": path}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    refused(tmp_path / "a.jsonl", "no such file", mm.data.picture_texts)
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "p", "chosen": path, "rejected": f"../{path}"}))
    refused(tmp_path / "b.jsonl", "no such file", mm.data.pairs)
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "p", "image": path}))
    refused(tmp_path / "c.jsonl", "no such file", mm.data.source_images)
    refused(tmp_path / "c.jsonl", "no such file", mm.data.picture_prompts)


def test_words_stay_words_whatever_lies_beside_them(tmp_path):
    """An answer that was called like a file became that file's path."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    row = {"prompt": "notes.txt", "chosen": "a.png", "rejected": "notes.txt", "image": "a.png"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (pair,) = mm.data.picture_texts(str(tmp_path / "a.jsonl")).first(2)
    assert (pair.prompt[0]["content"][1]["text"], pair.first, pair.second) == ("notes.txt", "a.png", "notes.txt")
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": "a.png", "image": "a.png", "answer": "notes.txt"}))
    (prompt,) = mm.data.picture_prompts(str(tmp_path / "p.jsonl"))
    assert prompt.content[0]["content"] == [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "a.png"}]
    assert prompt.columns == {"answer": "notes.txt"}


def test_the_working_folder_is_no_place_for_media(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "data" / "a.jsonl").write_text(json.dumps({**ROW, "image": "a.png"}))
    monkeypatch.chdir(tmp_path)
    refused("data/a.jsonl", "no such file: data/a.png", mm.data.picture_texts)


# ---- small things


def test_values_in_messages_are_short():
    assert (
        len(excerpt("x" * 10_000)) < 200
        and excerpt(10**5000) == f"a number of {(10**5000).bit_length()} bits"
        and excerpt([1] * 9999) == "list"
    )
    with pytest.raises(Broken) as error:
        parsed("x" * 10_000)
    assert len(str(error.value)) < 300


def test_rows_keep_their_file(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "in/b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROW))
    rows = [row for _, _, row in in_order(blocks(str(tmp_path)), seed=None)]
    assert [Path(row["__file__"]).name for row in rows] == ["a.jsonl", "b.jsonl"]
    assert len(list(islice(mm.data.texts(str(tmp_path)).stream(seed=0), 5))) == 5


@pytest.mark.parametrize("number", [8_507_040, 8_509_240])
def test_columns_of_parquet_whose_description_is_damaged_are_broken(tmp_path, number):
    """Asked for their sizes they end the process, in C++; so it is tried in another one. Cases of scripts/fuzz/data.py."""

    def read(rank):
        endings, wrong = data.run(1, number)
        assert endings.total() == 1 and not wrong, wrong

    assert together(1, read, tmp_path) == [(0, "")]


def test_a_case_that_ends_its_process_is_named_and_the_next_ones_are_tried():
    def act(numbers, tell):
        tell.send_bytes(b"ready")
        for number in numbers:
            if number == 3:
                signal.raise_signal(signal.SIGKILL)
            tell.send_bytes(b'["read", ""]')

    assert FUZZ["run"](6, 0, act) == ({"read": 5}, ["case 3: ended its process with -9 (below 0: by a signal)"])
    with pytest.raises(SystemExit, match="no case could be tried: the process ended with 0"):
        FUZZ["run"](6, 0, lambda numbers, tell: None)
