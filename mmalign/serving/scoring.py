"""Rewards asked one call after another in a thread of their own; questions that may be asked together become one call."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.facts import Stepped
from mmalign.arguments.parameters import accepted
from mmalign.records import RefusedRow
from mmalign.serving.weights import weights_hash
from mmalign.types import UserError

LONGEST_REASON = 300  # letters

Score = float | list[Any] | None  # of a row; a list: (start, end, score) of its parts


class Scored(NamedTuple):
    """What was said of some rows: part -> a score of each, "" for a reward of one number; row -> why it has none; the weights it is by."""

    scores: dict[str, list[Score]]
    reasons: dict[int, str]
    weights: str


@dataclass
class Asked:
    """A question to a reward. step: of training, for rewards that change as it goes. alone: whether rows do not depend on each other, so
    that it may be asked with others. ends: on the clock, when nobody waits for it any more."""

    reward: str
    prompts: list[Any]
    outputs: Any
    columns: dict[str, list[Any]]
    step: int | None = None
    alone: bool = False
    ends: float = math.inf
    answer: Future[Scored] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What questions have in common that may be asked together."""
        of_outputs = (self.outputs.dtype, tuple(self.outputs.shape[1:])) if isinstance(self.outputs, Tensor) else None
        return self.reward, self.step, of_outputs, tuple(sorted(self.columns))


class Full(Exception):
    """So many questions wait already that no more is taken."""


class Late(Exception):
    """Nobody waits for the answer any more."""


class Scoring:
    """``scoring.ask(question)`` gives a future; rewards are called in one thread, as models are not made to be called from several.

    together: rows of one call that is made of several questions; 1: each by itself. patience: seconds that a question which may be asked
    with others waits for them. waiting: questions at most. heard: told of each call: (reward, rows, seconds).
    """

    def __init__(
        self, rewards: Mapping[str, Callable[..., Any]], *, together: int, patience: float, waiting: int,
        heard: Callable[[str, int, float], None] = lambda reward, rows, seconds: None,
    ):  # fmt: skip
        self.rewards, self.together, self.patience, self.most, self.heard = dict(rewards), together, patience, waiting, heard
        self.weights = {name: weights_hash(reward) for name, reward in self.rewards.items()}
        self._asked_once = set[str]()
        self._queue: deque[Asked] = deque()
        self._changed, self._open = threading.Condition(), True
        self._thread = threading.Thread(target=self._work, name="mmalign-scoring", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many questions have not been begun."""
        return len(self._queue)

    def ask(self, asked: Asked) -> Future[Scored]:
        """The answer, later: Scored; or UserError, what the reward has against the question; or Late. Errors: Full."""
        with self._changed:
            if not self._open or len(self._queue) >= self.most:
                raise Full
            self._queue.append(asked)
            self._changed.notify_all()
        return asked.answer

    def close(self, seconds: float = 10.0) -> None:
        """Takes no question any more, and waits so long for those that are there."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._next():
            wanted = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            try:
                self._answer(wanted)
            except Exception as error:  # of ours or of a reward's: this thread answers whatever comes, and the next question too
                for one in wanted:
                    if not one.answer.done():
                        one.answer.set_exception(error)

    def _next(self) -> list[Asked]:
        """Questions for one call, none once it is closed and all are answered."""
        with self._changed:
            while not self._queue:
                if not self._open:
                    return []
                self._changed.wait()
            first = self._queue.popleft()
            batch, rows, until = [first], len(first.prompts), time.monotonic() + self.patience
            while first.alone and rows < self.together:
                fitting = next((one for one in self._queue if self._fits(one, first, rows)), None)
                if fitting is not None:
                    self._queue.remove(fitting)
                    batch.append(fitting)
                    rows += len(fitting.prompts)
                elif not self._open or not self._changed.wait(until - time.monotonic()):
                    break
        return batch

    def _fits(self, one: Asked, first: Asked, rows: int) -> bool:
        return one.alone and rows + len(one.prompts) <= self.together and one.kind == first.kind

    def _answer(self, batch: list[Asked]) -> None:
        now = time.monotonic()
        for late in (one for one in batch if one.ends < now):
            late.answer.set_exception(Late())
        batch = [one for one in batch if one.ends >= now]
        if not batch:
            return
        try:
            scored = self._scored(batch)
        except UserError as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for one in batch:  # one of them is not what the reward takes
                self._answer([one])
            return
        start = 0
        for one in batch:
            rows = range(start, start + len(one.prompts))
            scores = {part: values[rows.start : rows.stop] for part, values in scored.scores.items()}
            reasons = {row - start: why for row, why in scored.reasons.items() if row in rows}
            one.answer.set_result(Scored(scores, reasons, scored.weights))
            start = rows.stop

    def _scored(self, batch: Sequence[Asked]) -> Scored:
        name = batch[0].reward
        reward, prompts = self.rewards[name], [prompt for one in batch for prompt in one.prompts]
        tensors = isinstance(batch[0].outputs, Tensor)
        outputs = torch.cat([one.outputs for one in batch]) if tensors else [output for one in batch for output in one.outputs]
        columns = {column: [value for one in batch for value in one.columns[column]] for column in batch[0].columns}
        if batch[0].step is not None and isinstance(reward, Stepped) and callable(reward.at):
            reward.at(batch[0].step)
        begun = time.monotonic()
        scores, reasons = scores_of(reward, outputs, prompts, columns)
        self.heard(name, len(prompts), time.monotonic() - begun)
        if name not in self._asked_once:  # what loads its weights when it is first asked has them now
            self._asked_once.add(name)
            self.weights[name] = weights_hash(reward)
        return Scored(scores, reasons, self.weights[name])


def scores_of(
    reward: Callable[..., Any], outputs: Any, prompts: list[Any], columns: Mapping[str, list[Any]]
) -> tuple[dict[str, list[Score]], dict[int, str]]:
    """What a reward says of rows: part -> a score of each, None where there is none; and why there is none.

    Errors: UserError of the reward's own, for what is asked. Whatever else it raises is why none of the rows has a score; what it says
    about one row is that row's alone.
    """
    rows, refused = list(range(len(prompts))), dict[int, str]()
    while rows:
        try:
            with torch.no_grad():
                answer = reward(_taken(outputs, rows), [prompts[row] for row in rows], **_accepted(reward, columns, rows))
            break
        except RefusedRow as error:
            refused[rows.pop(error.row)] = _line(error.why)
        except UserError:
            raise
        except Exception as error:  # somebody else's code: whoever asks has to know what it raised
            return {"": [None] * len(prompts)}, dict.fromkeys(range(len(prompts)), _line(f"raised {type(error).__name__}: {error}"))
    if not rows:
        return {"": [None] * len(prompts)}, refused
    parts = answer if isinstance(answer, Mapping) else {"": answer}
    scores, reasons = dict[str, list[Score]](), dict(refused)
    for part, values in parts.items():
        whole: list[Score] = [None] * len(prompts)
        for row, value in zip(rows, _listed(values, len(rows)), strict=True):
            whole[row], why = _checked(value)
            if why:
                reasons.setdefault(row, why)
        scores[str(part)] = whole
    return scores, reasons


def _accepted(reward: Callable[..., Any], columns: Mapping[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
    return {name: [values[row] for row in rows] for name, values in accepted(reward, columns).items()}


def _taken(outputs: Any, rows: list[int]) -> Any:
    if len(rows) == len(outputs):
        return outputs
    return outputs[rows] if isinstance(outputs, Tensor) else [outputs[row] for row in rows]


def _listed(values: Any, rows: int) -> list[Any]:
    """Scores as a list. Errors: UserError where they are not one for each row."""
    if isinstance(values, Tensor):
        if values.shape != (rows,):
            raise UserError(f"the reward returned shape {list(values.shape)} for {rows} rows, takes [{rows}]")
        return list(values.detach().double().cpu().tolist())
    if not isinstance(values, (list, tuple)) or len(values) != rows:
        got = f"{len(values)} scores" if isinstance(values, (list, tuple)) else type(values).__name__
        raise UserError(f"the reward returned {got} for {rows} rows, takes one for each")
    return list(values)


def _checked(value: Any) -> tuple[Score, str]:
    """A score as JSON has it, and why there is none. Errors: UserError for what is no score."""
    try:
        if isinstance(value, (list, tuple)):
            parts = [[int(start), int(end), float(score)] for start, end, score in value]
            return (parts, "") if all(math.isfinite(score) for _, _, score in parts) else (None, "a part of it has no finite score")
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"the reward returned {str(value)[:80]!r} as a score, takes numbers, and NaN or None for a missing one") from error
    if math.isinf(number):
        return None, "the reward gave an infinite score"
    return (None, "the reward has no score of it") if math.isnan(number) else (number, "")


def _line(text: str) -> str:
    return " ".join(str(text).split())[:LONGEST_REASON]
