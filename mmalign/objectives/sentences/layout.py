"""Where each term's numbers stand in a signal: what terms are told of a row, in their order, then what their surveys have found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.objectives.parts import Part, Reading, Survey, Term
from mmalign.objectives.state.controllers import Together
from mmalign.types import Feedback, Need, Steps, Unit, UserError

_SIZES: dict[Unit, int] = {"cell": 0, "row": 1, "pair": 2, "group": 3, "batch": 4}


class Layout:
    """The numbers of several terms side by side, ``[..., E + S]``; a signal has those of the sentence itself before them."""

    def __init__(self, terms: Sequence[Term[Any]]):
        self.terms = terms
        self.readings = [term.extras for term in terms if term.extras is not None]
        self.surveys = [term.survey for term in terms if term.survey is not None]
        self._extras = [0 if term.extras is None else term.extras.width for term in terms]
        self._surveyed = [0 if term.survey is None else term.survey.width for term in terms]

    def needs(self, *others: Part | Term[Any] | None) -> frozenset[Need]:
        """What the terms need, and parts beside them."""
        return frozenset[Need]().union(*(piece.needs for piece in (*self.terms, *others) if piece is not None))

    def kinds(self, kinds: frozenset[str]) -> frozenset[str]:
        """Those of the kinds of steps that every term takes."""
        return kinds.intersection(*(term.kinds for term in self.terms))

    def unit(self, *others: Part | Term[Any] | None) -> Unit:
        """The largest that a term, or a part beside them, has to see whole."""
        return max((piece.unit for piece in (*self.terms, *others) if piece is not None), key=_SIZES.__getitem__, default="cell")

    def reads(self, *others: Reading | None) -> frozenset[Need]:
        """What the terms, and readings beside them, read."""
        return frozenset[Need]().union(*(reading.reads for reading in (*self.readings, *others) if reading is not None))

    def survey_needs(self) -> frozenset[Need]:
        """What the surveys need besides."""
        return frozenset[Need]().union(*(survey.needs for survey in self.surveys))

    def state(self, *others: Reading | None) -> Any:
        """What terms, and readings beside them, keep: None, one state, or several as one, numbered in their order."""
        pieces: list[Reading | Survey | None] = [*others, *(piece for term in self.terms for piece in (term.extras, term.survey))]
        states = {id(piece.state): piece.state for piece in pieces if piece is not None and piece.state is not None}
        several = list(states.values())
        return Together(**{str(number): state for number, state in enumerate(several)}) if len(several) > 1 else next(iter(several), None)

    def width(self, *, surveyed: bool = True) -> int:
        """How many numbers of a row are the terms', before the survey without what it finds."""
        return sum(self._extras) + (sum(self._surveyed) if surveyed else 0)

    def extras(self, feedback: Feedback) -> list[Tensor]:
        """What the terms are told of each row, ``[B, ...]`` float64 each, without gradient."""
        return [reading.of(feedback).detach().double() for reading in self.readings]

    def split(self, numbers: Tensor, *, surveyed: bool = True) -> list[tuple[Tensor, Tensor]]:
        """``numbers [..., E + S]``, ``[..., E]`` before the survey, as each term's own: what it was told, and what it found.

        Errors: UserError where a survey is still to be made.
        """
        widths = self._surveyed if surveyed else [0] * len(self.terms)
        if numbers.shape[-1] != sum(self._extras) + sum(widths):
            raise UserError("signal: got no survey of the update, this method takes one before its micro-batches")
        pieces = numbers.split([*self._extras, *widths], -1)
        return list(zip(pieces[: len(self.terms)], pieces[len(self.terms) :], strict=True))

    def survey(self, known: Callable[[Tensor, Tensor], Any], steps: Steps, numbers: Tensor) -> list[Tensor]:
        """What the surveys find, ``[..., S]`` each. known: (a term's extras, nothing yet) -> what the sentence knows, for that term."""
        owns = zip(self.terms, self.split(numbers, surveyed=False), strict=True)
        return [term.survey.of(steps, known(*own)).detach() for term, own in owns if term.survey is not None]


def side_by_side(values: Sequence[Tensor]) -> Tensor:
    """Numbers ``[B, 1 or T, S]`` of several pieces side by side, those of a row repeated where others are of steps.

    values: ``[B, 1 or T, S_k]`` each.
    """
    wide = max(value.shape[1] for value in values)
    return torch.cat([value.expand(-1, wide, -1) for value in values], -1)
