"""Prompts as token ids, with the images and videos that some of these stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmalign.media import Medium

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model is given it.

    ids: its tokens. text: what the processor read. media: in their order. spans: of each medium the tokens, from and up to, that the
    processor wrote for it. types: further inputs with a number for each token. digest: of the ids and pixels; empty without media.
    parts: of a conversation in which pictures are shown later, what was read apart: its prompt, and each reply (``shown.py``).
    answer: the token type of whatever follows it (``prefixes.ANSWER_TYPE``): in drawing, scoring and further turns the same.
    """

    ids: tuple[int, ...]
    text: str = ""
    media: tuple[Medium, ...] = ()
    spans: tuple[Span, ...] = ()
    types: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    digest: str = ""
    parts: tuple[Prompt, ...] = ()
    answer: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def followed(self, ids: Sequence[int]) -> Prompt:
        """It and the tokens behind it as one prompt: those are an answer's, however many turns they are, and never become its prefix."""
        types = {name: (*values, *(self.answer,) * len(ids)) for name, values in self.types.items()}
        return replace(self, ids=(*self.ids, *ids), types=types)

    def window(self, start: int, end: int) -> Prompt:
        """Some of its tokens; all media have to be inside. Errors: ValueError."""
        if any(first < start or last > end for first, last in self.spans):
            raise ValueError("a medium's tokens are cut")
        spans = tuple((first - start, last - start) for first, last in self.spans)
        types = {name: values[start:end] for name, values in self.types.items()}
        return replace(self, ids=self.ids[start:end], spans=spans, types=types)
