"""Preference data of texts as a stream without end: pairs, thumbs and rankings, from files and from the Hugging Face library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal

from mmalign.data import text_schemas
from mmalign.data.stored import Hub, Passed, Schema, Stored, hub
from mmalign.data.tables import Block, Row, blocks, in_order
from mmalign.media import Broken
from mmalign.records import Pair, Ranking, Record, Thumb
from mmalign.types import UserError

__all__ = ["hub_texts", "texts"]

Named = Literal["auto", "preference", "hh", "thumbs", "stepwise", "ranked", "ultrafeedback", "oasst"]
Score = Literal["ratings", "overall"]
Form = Literal["turns", "text"]
LOOK = 16  # records that are read before anything long starts
FLAT = {"message_id", "parent_id", "text"}  # OpenAssistant's messages, one to a row


def texts(
    path: str, *, schema: Named = "auto", columns: dict[str, str] | None = None, ties: Literal["soft", "drop"] = "soft",
    score: Score = "ratings", transcripts: Form = "turns", separator: str = "\n", max_bytes: int = 2**20,
) -> Stored:  # fmt: skip
    """Preference data of texts in local files: JSONL, JSON, CSV, parquet or tar, or a folder of them.

    Args:
        path: a file, or a folder of files.
        schema: what the rows are, or ``auto``, which looks at the first row's columns. Pairs: ``preference`` (prompt, chosen, rejected;
            the prompt may be what both share; UltraFeedback, binarized), ``hh`` (HH-RLHF). ``thumbs`` (prompt, completion, label).
            ``stepwise`` (prompt, completions, labels: a thumb for each step). Rankings: ``ranked`` (prompt, completions, scores or ranks),
            ``ultrafeedback``, ``oasst`` (OpenAssistant's trees, or its messages one to a row, which are read all at once).
            Texts may be strings or conversations; see ``data/text_schemas.py``.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``completion``, ``label``, ``strength``, ``id``, ``annotator`` are called here.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over. Records without a label are always passed over.
        score: of UltraFeedback, the mean of the ``ratings``, or the ``overall`` score. transcripts: HH-RLHF as ``turns`` or as ``text``.
        separator: between steps of a stepwise answer. max_bytes: of one text in UTF-8; more is broken.

    ``strength`` and ``label`` are probabilities. A method for pairs takes the best and the worst of a ranking, a method for thumbs the
    two of a pair (``recipes/offline.py``). A record that cannot be used is put aside with its id and the reason (``Stored.broken``), and
    the stream goes on. Errors: UserError, after a look at the first records, for no file, no schema, no usable record.
    """
    return _looked_at(blocks(path, media=False), schema, columns, ties, score, transcripts, separator, max_bytes)


def hub_texts(  # how a data set of others is read
    name: str, *, split: str = "train", config: str | None = None, streaming: bool = True, schema: Named = "auto",
    columns: dict[str, str] | None = None, ties: Literal["soft", "drop"] = "soft", score: Score = "ratings",
    transcripts: Form = "turns", separator: str = "\n", max_bytes: int = 2**20,
) -> Stored:  # fmt: skip
    """Preference data of texts that the Hugging Face ``datasets`` library loads by ``name``, on the hub or in a folder.

    streaming: read it as it comes, in a shuffle buffer of 1,000 records, instead of downloading all of it first; a resumed run then
    reads over what it has seen. The rest is as in ``texts``. Errors: UserError where the data set or the split is not there.
    """
    return _looked_at(hub(name, config, split, streaming), schema, columns, ties, score, transcripts, separator, max_bytes)


def _looked_at(
    source: list[Block] | Hub, schema: Named, columns: dict[str, str] | None, ties: str, score: Score, form: Form, separator: str,
    max_bytes: int,
) -> Stored:  # fmt: skip
    known: dict[str, Schema] = {
        "preference": text_schemas.preference, "hh": text_schemas.transcripts(form), "thumbs": text_schemas.thumbs,
        "stepwise": text_schemas.stepwise(separator), "ranked": text_schemas.ranked, "ultrafeedback": text_schemas.ultrafeedback(score),
        "oasst": text_schemas.oasst,
    }  # fmt: skip
    for key, value, takes in (
        ("schema", schema, ("auto", *known)), ("ties", ties, ("soft", "drop")), ("score", score, ("ratings", "overall")),
        ("transcripts", form, ("turns", "text")),
    ):  # fmt: skip
        if value not in takes:
            raise UserError(f"records.{key}: got {value!r}, takes {', '.join(takes)}")
    if max_bytes < 1:
        raise UserError(f"records.max_bytes: got {max_bytes}, takes 1 or more")
    names = columns or {}
    text_schemas.with_names({}, names)

    def guess(row: Row) -> Schema:
        row = text_schemas.with_names(row, names)
        found = known.get(schema) or text_schemas.guess(row, score=score, form=form, separator=separator)
        return text_schemas.renamed(names, found) if names else found

    found = Stored(_in_trees(source), guess=guess, made=made(ties, max_bytes))
    if not found.first(LOOK):
        raise found.unusable()
    found.dropped = dict.fromkeys(found.dropped, 0)
    return found


def made(ties: str, max_bytes: int) -> Callable[[Any], Record]:
    """Records whose texts are not too long and that say something."""

    def checked(record: Any) -> Record:
        outputs, said = _parts(record)
        for text in (text for part in (record.prompt, *outputs) for text in _strings(part)):
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:
                raise Broken(f"a text that is not Unicode: {error.reason}") from error
            if size > max_bytes:
                raise Broken(f"a text of {size:,} bytes, max_bytes is {max_bytes:,}")
        known = [value for value in said if value == value]
        if len(known) < min(len(said), 2):
            raise Passed("unlabelled")
        if ties == "drop" and not isinstance(record, Thumb) and (known == [0.5] if isinstance(record, Pair) else len(set(known)) == 1):
            raise Passed("ties")
        kept: Record = record
        return kept

    return checked


def _parts(record: Any) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """Outputs, and what is said of them."""
    if isinstance(record, Pair):
        return (record.first, record.second), (record.strength,)
    return (record.outputs, record.scores) if isinstance(record, Ranking) else ((record.output,), (record.label,))


def _strings(part: Any) -> Iterator[str]:
    for content in [part] if isinstance(part, str) else (turn["content"] for turn in part):
        yield from [content] if isinstance(content, str) else (piece["text"] for piece in content if piece["type"] == "text")


# ---- OpenAssistant's messages as trees


def _in_trees(source: list[Block] | Hub) -> list[Block] | Hub:
    """The source, or, where its rows are single messages of trees, one block whose rows are those trees."""
    if not any(not isinstance(row, Broken) and row.keys() >= FLAT for _, _, row in islice(_rows(source), 4)):
        return source
    name = source.name if isinstance(source, Hub) else source[0].name
    return [Block(name, lambda: _forest([(number, row) for _, number, row in _rows(source)]))]


def _rows(source: list[Block] | Hub) -> Iterator[tuple[int, str, Row | Broken]]:
    return source.rows(seed=None, start=0) if isinstance(source, Hub) else in_order(source, seed=None)


def _forest(rows: list[tuple[str, Row | Broken]]) -> tuple[int, Callable[[int], Row]]:
    """Trees of messages by their first one; a message that cannot be read, or whose parent is not there, is a broken row of its own."""
    nodes: dict[str, dict[str, Any]] = {}
    trees: list[Row | Broken] = []
    for name, row in rows:
        if isinstance(row, Broken) or not row.get("message_id"):
            trees.append(row if isinstance(row, Broken) else Broken(f"{name}: a message without message_id"))
        else:
            nodes[str(row["message_id"])] = {**row, "replies": []}
    for key, node in nodes.items():
        above: Mapping[str, Any] | None = nodes.get(str(node.get("parent_id")))
        if node.get("parent_id") in (None, ""):
            trees.append(node)
        elif above is None:
            trees.append(Broken(f"message {key} answers {node['parent_id']}, which is not there"))
        else:
            above["replies"].append(node)

    def read(number: int) -> Row:
        tree = trees[number]
        if isinstance(tree, Broken):
            raise tree
        return {"prompt": tree}

    return len(trees), read
