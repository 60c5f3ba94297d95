"""Preference data of texts as a stream without end: pairs, thumbs and rankings, from files and from the Hugging Face library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from mmalign.arguments.ranges import Size
from mmalign.data._reading.groups import in_trees
from mmalign.data._reading.stored import Hub, Passed, Schema, Stored, hub
from mmalign.data._reading.tables import Block, Row, blocks
from mmalign.data._schemas import columns as layouts
from mmalign.data._schemas import texts as text_schemas
from mmalign.data._schemas.notices import Notice
from mmalign.data._schemas.texts import Form, Score
from mmalign.media import Broken
from mmalign.records import Pair, Ranking, Record, Thumb
from mmalign.types import UserError

__all__ = ["hub_texts", "texts"]
OUTPUTS = {"texts": "texts", "hub_texts": "texts"}  # what they read: for who checks a config

SchemaName = Literal[
    "auto", "preference", "hh", "thumbs", "demonstrations", "stepwise", "ranked", "rated", "ultrafeedback", "critiques", "oasst"
]
LOOK = 16  # records that are read before anything long starts


def texts(
    path: str | list[str], *, schema: SchemaName = "auto", columns: dict[str, str] | None = None, ties: Literal["soft", "drop"] = "soft",
    score: Score = "ratings", transcripts: Form = "turns", separator: str = "\n", max_bytes: Size = 2**20,
) -> Stored:  # fmt: skip
    """Preference data of texts in local files: JSONL, JSON, CSV, TSV, parquet, arrow or tar, or a folder of them.

    Args:
        path: a file, a folder of files, or a list of these.
        schema: what the rows are, or ``auto``, which looks at the first row's columns. Pairs: ``preference`` (prompt, chosen, rejected;
            the prompt may be what both share; UltraFeedback, binarized), ``hh`` (HH-RLHF). ``thumbs`` (prompt, completion, label), and
            ``demonstrations``, plain supervised rows without a label, which are all good.
            ``stepwise`` (prompt, completions, labels: a thumb for each step), ``rated`` (prompt, completion, ratings: an object, dimension
            -> number; HelpSteer2). Rankings: ``ranked`` (prompt, completions, scores or ranks), ``ultrafeedback``
            (``critiques``: what its critics wrote, as demonstrations for a critic of one's own),
            ``oasst`` (OpenAssistant's trees, or its messages one to a row, which are read all at once). ``labels`` of a pair, and
            ``ratings_chosen`` and ``ratings_rejected``, are objects, dimension -> strength or number, for reward models of several scores.
            Texts may be strings or conversations, and columns may go by the names that LLaMA-Factory, ms-swift, ShareGPT, OpenAI and
            others give them; see ``data/README.md``.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``completion``, ``label``, ``strength``, ``id``, ``annotator`` are called here.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over. Records without a label are always passed over.
        score: of UltraFeedback, the mean of the ``ratings``, or the ``overall`` score. transcripts: HH-RLHF as ``turns`` or as ``text``.
        separator: between steps of a stepwise answer. max_bytes: of one text in UTF-8; more is broken.

    ``strength`` and ``label`` are probabilities. A method for pairs takes the best and the worst of a ranking, a method for thumbs the
    two of a pair (``recipes/offline.py``). Columns that nobody reads are named once. A record that cannot be used is put aside with its id
    and the reason (``Stored.broken``), and the stream goes on.

    Errors: UserError, after a look at the first records, for no file, no schema, no usable record.
    """
    return _looked_at(blocks(path), schema, columns, ties, score, transcripts, separator, max_bytes)


def hub_texts(  # how a data set of others is read
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None, streaming: bool = True,
    schema: SchemaName = "auto",
    columns: dict[str, str] | None = None, ties: Literal["soft", "drop"] = "soft", score: Score = "ratings",
    transcripts: Form = "turns", separator: str = "\n", max_bytes: Size = 2**20,
) -> Stored:  # fmt: skip
    """Preference data of texts of a data set that the Hugging Face ``datasets`` library loads; see ``texts``.

    Args:
        name: of the data set on the hub, or a folder. revision: a branch, a tag or a commit of it; the newest by default. A run that is
            resumed goes on with the commit that it began with, or not at all.
        streaming: read it as it comes, in a shuffle buffer of 1,000 records, instead of downloading all of it first; a resumed run then
            reads over what it has seen.
        schema: what the rows are, as in ``texts``; ``auto`` looks at the first row's columns.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``completion``, ``label``, ... are called here, otherwise.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over.
        score: of UltraFeedback, the mean of the ``ratings``, or the ``overall`` score.
        transcripts: HH-RLHF as ``turns`` or as ``text``. separator: between steps of a stepwise answer.
        max_bytes: of one text in UTF-8; more is broken.

    Errors: UserError where the data set or the split is not there, and as in ``texts``.
    """
    return _looked_at(hub(name, config, split, streaming, revision), schema, columns, ties, score, transcripts, separator, max_bytes)


def _looked_at(
    source: list[Block] | Hub, schema: SchemaName, columns: dict[str, str] | None, ties: str, score: Score, form: Form, separator: str,
    max_bytes: int,
) -> Stored:  # fmt: skip
    for key, value, takes in (
        ("schema", schema, get_args(SchemaName)),
        ("ties", ties, ("soft", "drop")),
        ("score", score, get_args(Score)),
        ("transcripts", form, get_args(Form)),
    ):
        if value not in takes:
            raise UserError(f"records.{key}: got {value!r}, takes {', '.join(takes)}")
    if max_bytes < 1:
        raise UserError(f"records.max_bytes: got {max_bytes}, takes 1 or more")
    names = columns or {}
    layouts.checked(names)
    notice = Notice("records")

    def guess(row: Row) -> Schema:
        kind = layouts.kind_of(row, names) if schema == "auto" else schema
        return text_schemas.reader(kind, names, score=score, form=form, separator=separator, notice=notice)

    stored = Stored(in_trees(source), guess=guess, finish=usable(ties, max_bytes))
    if not stored.first(LOOK):
        raise stored.unusable()
    stored.dropped = dict.fromkeys(stored.dropped, 0)
    return stored


def usable(ties: str, max_bytes: int) -> Callable[[Any], Record]:
    """Records whose texts are not too long and that say something.

    ties: ``drop`` passes over records that prefer nothing. max_bytes: of one text in UTF-8.
    """

    def checked(record: Any) -> Record:
        outputs, labels = _parts(record)
        for text in (text for part in (record.prompt, *outputs) for text in _strings(part)):
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:
                raise Broken(f"a text that is not Unicode: {error.reason}") from error
            if size > max_bytes:
                raise Broken(f"a text of {size:,} bytes, max_bytes is {max_bytes:,}")
        known = [value for value in labels if value == value]
        if len(known) < min(len(labels), 2) and not _by_dimension(record):
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


def _by_dimension(record: Any) -> bool:
    """Whether something is known of it in some dimension."""
    mappings = [*record.ratings, record.labels] if isinstance(record, Pair) else record.ratings
    return any(value == value for mapping in mappings for value in mapping.values())


def _strings(part: Any) -> Iterator[str]:
    for content in [part] if isinstance(part, str) else (turn["content"] for turn in part):
        yield from [content] if isinstance(content, str) else (piece["text"] for piece in content if piece["type"] == "text")
