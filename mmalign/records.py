"""Preference data as records: what is compared, what was said of it, and who said it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from mmalign.types import UserError

UNSAID: Mapping[str, float] = {}
"""What was said in no dimension."""
Marks = tuple[tuple[int, str], ...]
"""Words of a text that are marked as wrong: at which character they stand, and what they are; in their order, none twice."""


class Pair(NamedTuple):
    """Two outputs for one prompt, and the probability ``strength`` that the first is the better one (0.5: a tie, NaN: not known).

    prompt: a string, or a conversation (a list of ``{role, content}``). first, second: what rewards would see of one row (an image
    ``[C, H, W]`` in 0..1, a video ``[F, C, H, W]``, a string). id: what to call it in messages. position: how many records of its
    stream are over once it is used, broken ones included. scores: of both, where somebody scored them. annotator: who said so.
    labels: name of a dimension -> ``strength`` in it alone. ratings: of both, name of a dimension -> how good it is there; or nobody's, ().
    other: the prompt of the second, where it is not that of the first: one output that fits one prompt better than another.
    wrong: of both, words that people marked as wrong; None: nobody looked.
    """

    prompt: Any
    first: Any
    second: Any
    strength: float = 1.0
    id: str = ""
    position: int = 0
    scores: tuple[float, float] = (nan, nan)
    annotator: str = ""
    labels: Mapping[str, float] = UNSAID
    ratings: tuple[Mapping[str, float], ...] = ()
    other: Any = None
    wrong: tuple[Marks, Marks] | None = None


class Thumb(NamedTuple):
    """One output for a prompt, and the probability ``label`` that it is good (NaN: not known). The rest is as in ``Pair``."""

    prompt: Any
    output: Any
    label: float
    id: str = ""
    position: int = 0
    annotator: str = ""
    ratings: tuple[Mapping[str, float], ...] = ()


class Ranking(NamedTuple):
    """Several outputs for one prompt with a score each, the higher the better (NaN: not known). The rest is as in ``Pair``."""

    prompt: Any
    outputs: tuple[Any, ...]
    scores: tuple[float, ...]
    id: str = ""
    position: int = 0
    ratings: tuple[Mapping[str, float], ...] = ()


Record = Pair | Thumb | Ranking  # of preference data


def outputs_of(record: Record) -> tuple[Any, ...]:
    """What is compared: two of a pair, one of a thumb, all of a ranking."""
    if isinstance(record, Pair):
        return (record.first, record.second)
    return (record.output,) if isinstance(record, Thumb) else tuple(record.outputs)


def prompts_of(record: Record) -> tuple[Any, ...]:
    """The prompt of each of ``outputs_of``."""
    if isinstance(record, Pair) and record.other is not None:
        return (record.prompt, record.other)
    return (record.prompt,) * len(outputs_of(record))


@dataclass(frozen=True, eq=False)
class Unread:
    """An image or a video of a record that nobody has decoded yet. source: where it is. decode: what makes an output of that. name: what
    it is told apart by on machines that have it at another place."""

    source: Any
    name: str
    decode: Callable[[Any], Any]

    def read(self) -> Any:
        """What rewards would see. Errors: UserError where it cannot be used."""
        return self.decode(self.source)


class Unseen(str):
    """The path of a picture or video of a prompt at which nobody has looked yet. look: raises UserError where it cannot be used."""

    look: Callable[[str], None]

    def __new__(cls, path: str, look: Callable[[str], None]) -> Unseen:
        made = super().__new__(cls, path)
        made.look = look
        return made


def looked_at(prompt: Any) -> Any:
    """A prompt, all of whose media can be used. Errors: UserError for one that cannot."""
    if not isinstance(prompt, list):
        return prompt
    return [{**turn, "content": _parts_looked_at(turn["content"])} for turn in prompt]


def _parts_looked_at(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    for part in content:
        if isinstance(path := part.get("path"), Unseen):
            path.look(path)
    return [{**part, "path": str(path)} if isinstance(path := part.get("path"), Unseen) else part for part in content]


def read(record: Any) -> Any:
    """A record with its media decoded. Errors: UserError where one of them cannot be used."""
    media = {key: value.read() for key, value in record._asdict().items() if isinstance(value, Unread)}
    if isinstance(record, Pair) and record.other is not None:
        media["other"] = looked_at(record.other)
    return record._replace(prompt=looked_at(record.prompt), **media)


def once(records: Iterable[Any]) -> Iterator[Any]:
    """Records until one comes again, as a stream that is over begins anew; those without a name cannot be told apart."""
    names = set[str]()
    for record in records:
        if record.id and record.id in names:
            return
        names.add(record.id)
        yield record


class RefusedRow(UserError):
    """What an encoder says of a given row that it cannot use; recipes put its record aside and go on. row: its number. why: in words."""

    def __init__(self, row: int, why: str):
        super().__init__(f"row {row}: {why}")
        self.row, self.why = row, why


@runtime_checkable
class Choosy(Protocol):
    """Who is given outputs of one kind alone: ``texts`` or ``images`` (or videos); '' where that is not known yet."""

    learns_from: str


def suited(records: Sequence[Any], policy: Any, key: str = "") -> Sequence[Any]:
    """The records. Errors: UserError where the policy says what it learns from, and they hold the other; nothing is decoded for it."""
    kinds = {"images" if isinstance(output, (Tensor, Unread)) else "texts" for one in records for output in outputs_of(one)
             if not isinstance(output, Drawn)}  # fmt: skip
    if isinstance(policy, Choosy) and policy.learns_from and (others := kinds - {policy.learns_from}):
        takes = {"texts": "texts (mm.data.texts; picture_texts: texts about pictures)", "images": "images or videos (mm.data.pairs)"}
        raise UserError(f"{key}records: their outputs are {others.pop()}, and the policy learns from {takes[policy.learns_from]}")
    return records


AT = " at commit "
"""Before the commit in a digest of what a hub has; before it stands what it is of."""


@runtime_checkable
class Digested(Protocol):
    """Records that can be told apart from others."""

    def digest(self) -> str:
        """Another one where what they are read from has changed; '' where that cannot be told."""


@runtime_checkable
class Undecoded(Protocol):
    """Records whose media can be decoded later, by whom they are for."""

    def undecoded(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As ``Records.stream``, with `Unread` in place of images and videos; those that turn out to be broken are among them."""


class Records(Protocol):
    """Preference data: records of one kind without end, and what could not be read of them (``broken``: id -> why, as it is read)."""

    broken: dict[str, str]

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """All records in an order that ``seed`` gives, then again in another; from the position ``start`` on."""


class Drawn(NamedTuple):
    """In place of an output that the policy is to draw when its record is used (`Unfinished`)."""


class Author(Protocol):
    """What records that leave outputs to the policy may ask of it."""

    def draw(self, prompts: list[Any], names: list[str], *, by: str | None, call: Mapping[str, Any]) -> list[Any]:
        """Outputs, one for each prompt, under a set of parameters, or that of the method; ``names`` is what their seeds are made of."""

    def gains(
        self, prompts: list[Any], outputs: list[Any], group: list[int], *, by: str | None, looks: int, names: list[str]
    ) -> list[float]:
        """By how much the set explains each output better than ``ref``: the implicit reward, nats, the mean of ``looks`` draws."""

    def rewards(
        self, rewards: Mapping[str, Callable[..., Any]], combine: Callable[..., Any] | None, prompts: list[Any], outputs: list[Any],
        group: list[int], columns: Mapping[str, list[Any]],
    ) -> list[float]:  # fmt: skip
        """What rewards say of outputs, as one number each; NaN where nothing can be said. columns: what they may read beside prompts."""


@runtime_checkable
class Unfinished(Protocol):
    """Records some of whose outputs are ``Drawn``, until the recipe has them finished. by: the set that draws; None: the method's own."""

    by: str | None

    def finished(self, records: list[Any], author: Author) -> list[Any]:
        """The same with outputs in place of ``Drawn``, and what is said of them; of a process's own records."""

    def settled(self, records: list[Any]) -> list[Any]:
        """The same once all of a step are finished, where what counts of them depends on the others; those of other processes among them,
        whose outputs are not here."""
