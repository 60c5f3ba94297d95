"""Damages data files, and sees that reading them gives records, broken records or one line that refuses the file: no other error, no hang.

python scripts/fuzz/data.py                        # 5,000 files
python scripts/fuzz/data.py --count 100 --seed 700 # the hundred cases from number 700 on
python scripts/fuzz/data.py --seed 1000000000      # from this number on, files of Arrow

Files of texts and of pictures in JSONL, JSON, CSV, parquet, arrow and tar (compressed, too) are cut, and bytes of them are flipped,
doubled, left out and overwritten. A case is made from its number alone. Out of a file that was cut come records of the whole file and
no others, and where some are missing, that is said. Cases are tried in a process of their own: what ends that (a library's abort, a hang)
is a fault of the case that it was at, and the next ones go on in another.
"""

from __future__ import annotations

import argparse
import base64
import csv
import faulthandler
import io
import json
import multiprocessing
import random
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

import mmalign as mm
from mmalign.types import UserError

KINDS = ("jsonl", "json", "csv", "parquet", "tar", "tar.gz", "tar.xz")
ARROW = 10**9  # the number of the first case of Arrow, which came later: the others keep theirs
WAYS = ("cut", "flip", "double", "drop", "overwrite", "junk", "swap")
JUNK = (
    b"\0" * 40,
    b"[" * 3000,
    b"9" * 5000,
    b'"',
    b"\n",
    b"\r",
    b"\xff\xfe",
    b"\xe2\x80\xa8",
    b"1e999",
    b'{"a":',
    b"\\ud800",
    b",,,,",
    b"NaN",
)
SLOW = 60.0  # seconds for one file, after which its traceback is printed and the script ends
RECORDS = 12


def png(level: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(held, "PNG")
    return held.getvalue()


def rows(pictures: bool) -> list[dict[str, Any]]:
    """Pairs of texts, or of pictures as bytes."""
    answers = [(f"good, {n}\nof it", f"bad {n}") for n in range(RECORDS)]
    if pictures:
        return [{"prompt": f"prompt {n}", "chosen": png(100 + n), "rejected": png(n), "id": f"row {n}"} for n in range(RECORDS)]
    return [{"prompt": f"prompt {n}", "chosen": one, "rejected": other, "id": f"row {n}"} for n, (one, other) in enumerate(answers)]


def whole(kind: str, pictures: bool) -> bytes:
    """A file of a kind that nothing is wrong with; pictures that the kind cannot hold are ``data:`` addresses."""
    records = rows(pictures)
    if pictures and kind in ("jsonl", "json", "csv"):
        address = "data:image/png;base64,"
        records = [
            {key: address + base64.b64encode(value).decode() if isinstance(value, bytes) else value for key, value in row.items()}
            for row in records
        ]
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in records).encode()
    if kind == "json":
        return json.dumps(records).encode()
    held = io.BytesIO()
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, records[0].keys(), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().encode()
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), held, row_group_size=5, write_page_checksum=True)
        return held.getvalue()
    if kind == "arrow":
        import pyarrow

        table = pyarrow.Table.from_pylist(records)
        with pyarrow.ipc.new_stream(held, table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
        return held.getvalue()
    with tarfile.open(fileobj=held, mode=f"w:{kind[4:]}") as archive:  # type: ignore[call-overload]
        for row in records:
            pieces = {f"{side}.png": row[side] for side in ("chosen", "rejected")} if pictures else {}
            text_columns = {key: value for key, value in row.items() if not isinstance(value, bytes)}
            for end, content in {**pieces, "json": json.dumps(text_columns).encode()}.items():
                member = tarfile.TarInfo(f"{row['id'].replace(' ', '')}.{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return held.getvalue()


def damaged(content: bytes, way: str, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    length = min(rng.choice((1, 2, 7, 64, 513)), len(content) - place)
    if way == "cut":
        return content[:place]
    if way == "flip":
        held = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 30))):
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
        return bytes(held)
    if way == "double":
        return content[: place + length] + content[place:]
    if way == "drop":
        return content[:place] + content[place + length :]
    if way == "overwrite":
        return content[:place] + rng.randbytes(length) + content[place + length :]
    if way == "junk":
        return content[:place] + rng.choice(JUNK) + content[place:]
    other = rng.randrange(len(content))
    return content[:place] + content[other : other + length] + content[place + length :]


def key(record: Any) -> tuple[Any, ...]:
    return tuple(repr(part) if isinstance(part, (str, list)) else float(part.mean()) for part in record[:3])


def read(path: Path, pictures: bool) -> tuple[list[tuple[Any, ...]], int]:
    """What a pass over a file gives, and how many of its records are broken."""
    records = mm.data.pairs(str(path)) if pictures else mm.data.texts(str(path))
    return [key(record) for record in records.first(10 * RECORDS)], len(records.broken)


def case(seed: int, folder: Path, files: dict[tuple[str, bool], bytes], known: dict[bool, set[tuple[Any, ...]]]) -> str:
    """How a case ended. Raises what a reader should not, and AssertionError for a file that was cut and read as if it were whole."""
    rng = random.Random(seed)
    kind, pictures, way = rng.choice(KINDS), rng.random() < 0.4, rng.choice(WAYS)
    kind = "arrow" if seed >= ARROW else kind
    content = files[kind, pictures]
    path = folder / f"data.{kind.partition('.')[0]}"
    broken_content = damaged(content, way, rng)
    path.write_bytes(broken_content)
    what = f"{kind} {'pictures' if pictures else 'texts'} {way}"
    try:
        records, broken = read(path, pictures)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 1500:
            raise AssertionError(f"{what}: an error of {len(str(error))} letters or several lines") from error
        return "refused"
    if way == "cut":
        if set(records) - known[pictures]:
            raise AssertionError(f"{what}: a record that the whole file does not hold: {sorted(set(records) - known[pictures])[0]}")
        end = len(broken_content)
        ends = kind in ("jsonl", "csv") and b"\n" in content[end - 1 : end + 2]  # between two lines: nobody can tell,
        ends = ends or (kind == "csv" and broken_content.endswith(b","))  # nor before a last field, which may be empty
        if not broken and len(records) < RECORDS and not ends:
            raise AssertionError(f"{what}: {len(records)} of {RECORDS} records, and nothing is said")
    return "with broken records" if broken else "read"


def tried(numbers: range, tell: Connection) -> None:
    """Says that it begins, and how each case ended, ``[ending, what went wrong]``, in their order."""
    files = {(kind, pictures): whole(kind, pictures) for kind in (*KINDS, "arrow") for pictures in (False, True)}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, known = Path(name), dict[bool, set[tuple[Any, ...]]]()
        for (kind, pictures), content in files.items():
            path = folder / f"data.{kind.partition('.')[0]}"
            path.write_bytes(content)
            records, broken = read(path, pictures)
            if broken or set(records) != known.setdefault(pictures, set(records)) or len(records) != RECORDS:
                raise SystemExit(f"{kind}: the whole file is not read as it is")
        tell.send_bytes(b"ready")
        for number in numbers:
            faulthandler.dump_traceback_later(SLOW, exit=True)
            try:
                ending = [case(number, folder, files, known), ""]
            except Exception as error:  # which is what is looked for
                place = "".join(traceback.format_tb(error.__traceback__)[-2:])
                ending = ["", f"{type(error).__name__}: {str(error)[:300]}\n{place}"]
            faulthandler.cancel_dump_traceback_later()
            tell.send_bytes(json.dumps(ending).encode())


def run(count: int, seed: int, act: Callable[[range, Connection], None] = tried) -> tuple[Counter[str], list[str]]:
    """Endings, and what went wrong, of ``count`` cases from number ``seed`` on. act: tries them, in another process."""
    endings, wrong = Counter[str](), list[str]()
    number, fork = seed, multiprocessing.get_context("fork")
    while number < seed + count:
        hear, tell = fork.Pipe(duplex=False)
        process = fork.Process(target=act, args=(range(number, seed + count), tell))
        process.start()
        tell.close()
        begun = False
        with suppress(EOFError):
            begun = bool(hear.recv_bytes())
            while True:
                ending, what = json.loads(hear.recv_bytes())
                endings.update([ending] if ending else [])
                wrong.extend([f"case {number}: {what}"] if what else [])
                number += 1
        process.join()
        if not begun:
            raise SystemExit(f"no case could be tried: the process ended with {process.exitcode}")
        if number < seed + count:
            wrong.append(f"case {number}: ended its process with {process.exitcode} (below 0: by a signal)")
            number += 1
    return endings, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="how many files")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    endings, wrong = run(options.count, options.seed)
    for line in wrong[:20]:
        print(line)
    print(f"{options.count} files: {', '.join(f'{count} {ending}' for ending, count in sorted(endings.items()))}, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
