"""A reward, or an oracle, on a server of ``mmalign serve-reward``, on another machine or in an environment of its own, asked as if it were
here."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Natural
from mmalign.arguments.signatures import Record
from mmalign.rewards._shared.scorer import Comparer, Scorer, column_of
from mmalign.serving.asking import Asking, Client, Passing, Unreadable, key_of, strict_json
from mmalign.serving.oracles import ORACLE
from mmalign.serving.started import DYING, Start, alive, started
from mmalign.serving.wire import PROTOCOL, Pixels, content_hash, packed, packed_prompt
from mmalign.types import Oracle, UserError

__all__ = ["served", "served_pairs"]

DIFFERENTIABLE = False

MENDABLE = {
    401: "takes another key",
    403: "takes another key",
    404: "takes another url or reward",
    413: "takes fewer rows at once (rows), or a server with other limits",
    422: "what the reward says of the question",
}
Other = Literal["stop", "missing", "take"]


@dataclass(frozen=True, kw_only=True)
class Rows(Record):
    """For a reward whose score of a row depends on that row alone: its rows may be asked about in separate calls.

    most: of one question. cache: scores that are kept, by a hash of prompt, output and columns; the oldest goes first. They are not in
    checkpoints.
    """

    most: Count = 64
    cache: Natural = 0


def served(  # one argument for each thing that is said of a server
    *, url: str | None = None, start: Start | None = None, reward: str | None = None, weights: str | None = None,
    other_weights: Other = "stop", rows: Rows | None = None, pixels: Pixels = "exact", asking: Asking = Asking(),  # noqa: B008
) -> Scorer:  # fmt: skip
    """What a reward on a server says: the same numbers as here, NaN where the server has none or gives no answer.

    Nothing is sent before the first question. What a question consists of (outputs, prompts, the columns that the reward takes, the step)
    goes as JSON, with tensors as safetensors; `serving.wire` has the form, and `serving.asking` the rules of asking again and of stopping.
    Asking twice is safe: a score changes nothing. Answers are checked: the weights they are by, their number, that they are numbers.

    Args:
        url: of the server, ``http://HOST:PORT``. start: ``{config: FILE, requirements: FILE}``, a server that the run starts in its place.
        reward: its name there; the only one where that is not said.
        weights: the hash of weights that are taken, as ``mmalign serve-reward`` prints it; those of the first answer, where it is not said.
        other_weights: answers by others ``stop`` the run, are ``missing``, or are taken (``take``).
        rows: ``{most: 64, cache: 10000}``, of a reward whose score of a row depends on that row alone; otherwise a call is one question.
        pixels: ``exact``, or ``png``, which is 8 bits, and a quarter of the bytes or less.
        asking: how often and how long it is asked, and how much may be missing.

    Not differentiable: no gradient comes back. Several processes of a run ask the one server each about its own rows.

    Errors: UserError for settings that do not fit, a server that refuses the key or has no such reward, other weights, and what the reward
    itself has against a question.
    """
    if (url is None) == (start is None):
        raise UserError("served: takes either url, or start")
    remote = Remote(reward, weights, other_weights, rows, pixels, asking, url=url, start=start)
    return Scorer("served", remote.score, at=remote.at, state=remote)


def served_pairs(  # as ``served``
    *, url: str | None = None, start: Start | None = None, weights: str | None = None, other_weights: Other = "stop",
    pixels: Pixels = "exact", asking: Asking = Asking(),  # noqa: B008
) -> Oracle:  # fmt: skip
    """What the oracle on a server says: win probabilities ``[B, B]``, NaN where it says nothing, or where no answer came.

    The outputs of a call are one question, with their groups.

    Args:
        url, start, weights, other_weights, pixels, asking: as of ``served``, of a server whose config has an ``oracle``.

    Errors: UserError, as of ``served``, and for a server without an oracle.
    """
    if (url is None) == (start is None):
        raise UserError("served_pairs: takes either url, or start")
    remote = Remote(ORACLE, weights, other_weights, None, pixels, asking, url=url, start=start)

    def compare(outputs: Any, prompts: list[Any], group: Tensor, **columns: Any) -> Tensor:
        numbers, wins = group.tolist(), torch.full((len(prompts), len(prompts)), math.nan, dtype=torch.float64)
        said = remote.score(outputs, prompts, **columns, group=numbers)
        if isinstance(said, Mapping):
            raise UserError(f"served_pairs: the server's {ORACLE} is a reward of the parts {', '.join(said)}, takes an oracle")
        for row, others in enumerate([] if isinstance(said, Tensor) and bool(said.isnan().all()) else said):
            if not isinstance(others, (list, type(None))):
                raise UserError(f"served_pairs: the server's {ORACLE} is a reward of one number, takes an oracle")
            for other, _, p in others or ():
                if not 0 <= other < len(prompts) or numbers[other] != numbers[row] or not 0 <= p <= 1:
                    raise UserError(f"served_pairs: the server compares row {row} with {other} and says {p:g}; takes 0..1, within a group")
                wins[row, other] = p
        return wins

    return Comparer("served_pairs", compare)


class Answer(NamedTuple):
    """What came back of one question: part -> a score of each row, and why rows have none."""

    scores: dict[str, list[Any]]
    reasons: dict[int, str]


class Remote:
    """A reward on a server. ``dump`` and ``load`` keep what was counted, the weights that are expected, and the names of its parts."""

    def __init__(  # what ``served`` is told
        self, reward: str | None, weights: str | None, other: Other, rows: Rows | None, pixels: Pixels, asking: Asking, *,
        url: str | None, start: Start | None,
    ):  # fmt: skip
        self.reward, self.weights, self.other, self.rows, self.pixels, self.asking = reward, weights, other, rows, pixels, asking
        self.start, self.step, self.parts = start, None, list[str]()  # type: Start | None, int | None, list[str]
        self._facts: dict[str, Any] | None = None
        self._cache: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._kept: dict[str, Any] | None = None
        self.restarted = 0
        self._client: Client | None = None if url is None else self._connected(url, key_of("asking", asking))

    def _connected(self, url: str, key: str | None) -> Client:
        where: dict[str, Any] = {"url_place": "served.url", "form": "http(s)://HOST:PORT", "mendable": MENDABLE}
        return Client(self.reward or "served", "asking", self.asking, url, key=key, **where)

    @property
    def client(self) -> Client:
        """Who asks; the server is started where that has to be done."""
        return self._started(self._kept) if self._client is None else self._client

    def _started(self, counted: dict[str, Any] | None) -> Client:
        assert self.start is not None
        self.address = started(self, self.reward or "served", self.start, lambda line: print(line, file=sys.stderr))
        self._facts, self._client = None, self._connected(self.address.url, self.address.token)
        self._client.load(counted or self._client.dump())
        return self._client

    def _restarted(self, *, patience: float = 0.0) -> bool:
        """Whether the server had ended though nobody ended it, and has been started again. patience: as of ``started.alive``."""
        if self.start is None or self._client is None or self.restarted >= self.start.restarts:
            return False
        if alive(self.address.pid, patience=patience):
            return False
        self.restarted += 1
        who, number = self.reward or "served", f"{self.restarted} of {self.start.restarts}"
        print(f"{who}: its server has ended by itself; starting it again, {number}", file=sys.stderr)
        self._started(self._client.dump())
        return True

    def at(self, step: int) -> None:
        """The step that is told to rewards that change as training goes."""
        self.step = step

    def dump(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        counted = self._kept if self._client is None else self._client.dump()
        return {"counted": counted, "weights": self.weights, "parts": self.parts, "restarted": self.restarted}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts ``dump`` back."""
        self.weights, self.parts, self._kept = self.weights or state["weights"], list(state["parts"]), state["counted"]
        self.restarted = state.get("restarted", 0)
        if self._client is not None and self._kept is not None:
            self._client.load(self._kept)

    def score(self, outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        """``[B]`` float64, or such by part, or lists of the scores of parts of texts."""
        count = len(prompts)
        if len(outputs) != count:
            raise UserError(f"served: got {len(outputs)} outputs for {count} prompts, takes one for each")
        tables: list[dict[str, Any] | None] = [None] * count
        reasons: list[str | None] = [None] * count
        hashes = self._hashes(outputs, prompts, columns)
        known = [self._cache.get(key) if key else None for key in hashes]
        asked = [row for row in range(count) if known[row] is None]
        size = self.rows.most if self.rows is not None else max(1, count)
        parts = [asked[first : first + size] for first in range(0, len(asked), size)]
        for rows, answer in zip(parts, self._answers(parts, lambda rows: self._ask(rows, outputs, prompts, columns)), strict=True):
            for place, row in enumerate(rows):
                if isinstance(answer, Unreadable):
                    reasons[row] = str(answer)
                    continue
                tables[row] = {part: scores[place] for part, scores in answer.scores.items()}
                reasons[row] = answer.reasons.get(place)
                self._remember(hashes[row], tables[row] if reasons[row] is None else None)
        tables = [table if table is not None else known[row] for row, table in enumerate(tables)]
        self.client.count(reasons, lambda row: {"prompt": str(prompts[row])[:500], "output": str(outputs[row])[:500]})
        return self._together(tables)

    def _answers(self, parts: list[list[int]], ask: Callable[[list[int]], Answer]) -> list[Answer | Unreadable]:
        """An answer to each question, or why there is none. What a server that ended did not answer, the next one is asked."""
        self._restarted()
        answers = list(self.client.each(parts, ask))
        open_ = [place for place, answer in enumerate(answers) if isinstance(answer, Unreadable)]
        while open_ and self._restarted(patience=DYING):
            for place, answer in zip(open_, self.client.each([parts[place] for place in open_], ask), strict=True):
                answers[place] = answer
            open_ = [place for place in open_ if isinstance(answers[place], Unreadable)]
        return answers

    def _together(self, tables: Sequence[Mapping[str, Any] | None]) -> Any:
        self.parts = list(dict.fromkeys([*self.parts, *(part for table in tables for part in table or ())]))
        by_part = {part: _column([None if table is None else table.get(part) for table in tables]) for part in self.parts or [""]}
        return by_part[""] if list(by_part) == [""] else {part: scores for part, scores in by_part.items() if part}

    def _ask(self, rows: list[int], outputs: Any, prompts: list[Any], columns: Mapping[str, Any]) -> Answer:
        facts = self._known()
        some = outputs[rows] if isinstance(outputs, Tensor) else [outputs[row] for row in rows]
        body = {
            "reward": self.reward,
            "prompts": [packed_prompt(prompts[row]) for row in rows],
            "outputs": packed(some, self.pixels),
            "columns": {name: [packed(values[row]) for row in rows] for name, values in self._taken(facts, columns).items()},
            "step": self.step,
            "alone": self.rows is not None,
            "seconds": self.asking.timeout,
        }
        return self._read(strict_json(self.client.send("/score", body)), len(rows))

    def _known(self) -> dict[str, Any]:
        """What the server says of the reward, asked once. Errors: UserError for a reward that it has not."""
        if self._facts is None:
            info = strict_json(self.client.send("/info"))
            rewards = info.get("rewards") if isinstance(info, Mapping) and info.get("protocol") == PROTOCOL else None
            if not isinstance(rewards, Mapping) or not all(isinstance(facts, Mapping) for facts in rewards.values()):
                raise Unreadable("no server of mmalign serve-reward that speaks this version's protocol")
            if self.reward is None and len(rewards) == 1:
                self.reward = next(iter(rewards))
            if self.reward not in rewards:
                got = "none" if self.reward is None else repr(self.reward)
                raise UserError(f"served.reward: got {got}, the server has {', '.join(rewards)}")
            self._facts = dict(rewards[self.reward])
        return self._facts

    def _taken(self, facts: Mapping[str, Any], columns: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in facts.get("reads") or ():
            column_of(f"served ({self.reward})", name, columns)
        takes = facts.get("takes")
        return columns if takes is None else {name: values for name, values in columns.items() if name in takes}

    def _read(self, answer: Any, count: int) -> Answer:
        """An answer, checked. Errors: Passing for another shape, Unreadable and UserError for other weights."""
        if not isinstance(answer, Mapping) or answer.get("reward") != self.reward:
            raise Passing("an answer of another shape")
        scores, reasons, weights = answer.get("scores"), answer.get("reasons"), answer.get("weights")
        if not isinstance(scores, Mapping) or not scores or not isinstance(reasons, Mapping) or not isinstance(weights, str):
            raise Passing("an answer of another shape")
        if odd := [part for part, values in scores.items() if not isinstance(values, list) or len(values) != count]:
            got = len(scores[odd[0]]) if isinstance(scores[odd[0]], list) else type(scores[odd[0]]).__name__
            raise Passing(f"{got} scores for {count} rows" if isinstance(got, int) else "an answer of another shape")
        if not all(_is_score(value) for values in scores.values() for value in values):
            raise Passing("an answer with scores that are no numbers")
        self._refuse_others(weights)
        why = {int(row): f"the server: {text}"[:300] for row, text in reasons.items() if str(row).isdecimal()}
        for row in {row for values in scores.values() for row, value in enumerate(values) if value is None}:
            why.setdefault(row, "the server: no reason")
        return Answer(dict(scores), why)

    def _refuse_others(self, weights: str) -> None:
        if self.weights is None or (weights != self.weights and self.other == "take"):
            self.weights = weights
            self._cache.clear()
        if weights == self.weights:
            return
        if self.other == "missing":
            raise Unreadable("other weights")
        raise UserError(f"served: {self.reward} answers by weights {weights}, takes {self.weights} (weights, other_weights)")

    def _hashes(self, outputs: Any, prompts: list[Any], columns: Mapping[str, Any]) -> list[str]:
        """What rows are told apart by; '' where nothing is kept."""
        if self.rows is None or not self.rows.cache:
            return [""] * len(prompts)
        of_rows = ({name: packed(values[row]) for name, values in columns.items()} for row in range(len(prompts)))
        return [
            content_hash([packed_prompt(prompt), packed(output), these, self.step if self._changes() else None])
            for prompt, output, these in zip(prompts, outputs, of_rows, strict=True)
        ]

    def _changes(self) -> bool:
        return self._facts is None or bool(self._facts.get("changes"))

    def _remember(self, key: str, scores: dict[str, Any] | None) -> None:
        if key and scores is not None and self.rows is not None:
            self._cache[key] = scores
            while len(self._cache) > self.rows.cache:
                self._cache.popitem(last=False)


def _is_score(value: Any) -> bool:
    """Whether it is a finite number, null, or scores of parts."""
    if isinstance(value, list):
        return all(isinstance(part, list) and len(part) == 3 and all(map(_is_number, part)) for part in value)
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _column(values: list[Any]) -> Any:
    if any(isinstance(value, list) for value in values):
        return [None if value is None else [tuple(part) for part in value] for value in values]
    return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)
