"""Prompts and completions that fit: refused where they are too long, or cut where the user says so, images and videos as wholes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmalign.conversations import without
from mmalign.media import KINDS
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.encoded_rows import EncodedRow
from mmalign.policies.language.prompts.shown import before, whole_until
from mmalign.types import UserError

Truncate = Literal["left", "right"]


@dataclass(frozen=True)
class Room:
    """How much there is. context: tokens of a prompt and its completion, None for no end. max_prompt, max_completion: of each.

    truncate: the end of too long prompts that is cut off; too long completions then lose their end; None refuses them. An image or a
    video that a cut would go through is left out: the prompt is read anew without it. cut: what was, counted.
    """

    chat: Chat
    context: int | None
    max_prompt: int | None
    max_completion: int
    truncate: Truncate | None
    cut: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, size in (("max_prompt", self.max_prompt), ("max_completion", self.max_completion)):
            if size is not None and size < 1:
                raise UserError(f"policy.{name}: got {size}, takes 1 or more")
        if self.context is not None and self.max_completion >= self.context:
            limit = f"the model's context holds {self.context} tokens with the prompt"
            raise UserError(f"policy.max_completion: got {self.max_completion}, {limit}")
        if self.truncate not in (None, "left", "right"):
            raise UserError(f"policy.truncate: got {self.truncate!r}, takes left or right")

    def prompt(self, source: Any, number: int, *, system: str | None = None) -> Prompt:
        """Prompt ``number`` as a model is given it. Errors: UserError that names it."""
        try:
            prompt = self.chat.prompt(source, system=system)
        except UserError as error:
            raise UserError(f"prompt {number}: {str(error).removeprefix('prompt: ')}") from error
        return self.fitted(prompt, source, number, system=system)

    def fitted(self, prompt: Prompt, source: Any, number: int | None = None, *, system: str | None = None) -> Prompt:
        """A prompt that leaves room for a completion: itself, or cut. source: what it was made of."""
        while True:
            room = None if self.context is None else self.context - self.max_completion
            most = min(size for size in (self.max_prompt, room, len(prompt)) if size is not None)
            if len(prompt) <= most:
                return prompt
            if self.truncate is None:
                here = f"a context of {self.context} leaves room for {most}"
                where = f"max_prompt is {self.max_prompt}" if most == self.max_prompt else here
                which = "prompt" if number is None else f"prompt {number}"
                raise UserError(f"{which}: has {len(prompt)} tokens, {where}; takes a shorter one, or truncate: left or right")
            start, end = (len(prompt) - most, len(prompt)) if self.truncate == "left" else (0, most)
            dropped = {place for place, (first, last) in enumerate(prompt.spans) if first < start or last > end}
            if not dropped:
                self._count("prompts")
                return prompt.window(start, end)
            for kind, count in Counter(prompt.media[place].kind for place in dropped).items():
                self._count(f"{kind}s", count)
            source = without(source, dropped)
            prompt = self.chat.prompt(source, system=system)

    def refusals(self, sources: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that cannot be used. What would be cut of the others is not counted."""
        uncounted = replace(self, cut=dict.fromkeys(("prompts", *(f"{kind}s" for kind in KINDS)), 0))
        why: dict[int, str] = {}
        for place, source in enumerate(sources):
            try:
                uncounted.fitted(self.chat.prompt(source), source)
            except UserError as error:
                why[place] = str(error).removeprefix("prompt: ")
        return why

    def row(self, row: EncodedRow, source: Any) -> EncodedRow:
        """A given row that fits: itself, or cut. Errors: UserError for one that is too long, where nothing is cut."""
        prompt = self.fitted(row.prompt, source)
        if len(row.completion) <= self.max_completion:
            return row._replace(prompt=prompt)
        if self.truncate is None:
            too_long = f"has {len(row.completion)} tokens, max_completion is {self.max_completion}"
            raise UserError(f"completion: {too_long}; takes a shorter one, a larger max_completion, or truncate: left or right")
        self._count("completions")
        end = whole_until(row.shown, self.max_completion)
        return EncodedRow(prompt, row.completion[:end], row.trained[:end], before(row.shown, end))

    def _count(self, what: str, times: int = 1) -> None:
        if what not in self.cut:
            how = "are too long and cut" if what in ("prompts", "completions") else "do not fit and are left out, with their tokens"
            warnings.warn(f"policy.truncate: {what} {how} (policy.cut counts them)", stacklevel=5)
        self.cut[what] = self.cut.get(what, 0) + times
