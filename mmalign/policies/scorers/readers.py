"""What reads an output for a reward model, and what every such reader is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.language.scoring.last_states import last_states
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.transformers import TransformersPolicy
from mmalign.records import RefusedRow
from mmalign.types import EVERY, Level, Rollout, UserError

__all__: list[str] = []


@runtime_checkable
class Reader(Protocol):
    """What makes features of finished outputs.

    width: H, how many features there are. model: what reads, whose parameters ``sets`` trains. rows_at_once: rows in one pass where
    nothing is trained. differentiable: whether the features have a gradient to outputs that have one.
    """

    width: int
    model: nn.Module
    sets: ParameterSets
    rows_at_once: int
    differentiable: bool

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """Given outputs with all that features are made of, as ``types.Encoder.encode``; of its tables nobody reads anything.

        rng: None: nothing is drawn, and outputs are read as they are.

        Errors: RefusedRow for the first row that cannot be read.
        """

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, H]`` float32 of some rows of what ``read`` gave, differentiable."""

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that cannot be read."""


@runtime_checkable
class ReaderOfLatents(Protocol):
    """A reader that is handed latents, too."""

    def at(self, prompts: list[Any], x: Tensor, level: Level | None) -> Tensor:
        """``[B, H]`` of latents ``[B, ...]`` at a noise level, of clean ones for None; differentiable in them."""


class LastToken:
    """A language or vision-language model's last hidden state, at the last token of prompt and answer.

    Answers are read behind their prompts; an image ``[C, H, W]`` in 0..1, or a video ``[F, C, H, W]``, in front of its prompt's words,
    by a model that sees, and what is read is the end of an answer without any. Pictures go through the model's own processor, which
    knows no gradient.
    """

    differentiable = False
    predicts = False  # whether words are predicted, too

    def __init__(self, of: TransformersPolicy):
        self.of, self.model, self.sets, self.rows_at_once = of, of.model, of.sets, of.rows_at_once
        self.width = int(of.model.config.get_text_config().hidden_size)
        output = None if self.predicts else of.model.get_output_embeddings()
        if output is not None and output.weight is not of.model.get_input_embeddings().weight:
            own = {id(p) for p in output.parameters()}  # words are not predicted, and no gradient arrives there
            of.sets.freeze([name for name, p in of.sets.trained.items() if id(p) in own])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.of.device

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the model cannot be given."""
        return self.of.refusals(prompts)

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """Token ids, and pictures as the model's inputs. Errors: RefusedRow, and UserError for pictures where it reads words alone."""
        own = [outputs[row] for row in range(len(prompts))[part]]
        if own and isinstance(own[0], Tensor):
            return self._seen(prompts[part], own, group[part], first=range(len(prompts))[part].start)
        return self.of.encode(prompts, outputs, group, rng or torch.Generator(), part=part)

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, H]`` float32, differentiable with respect to the model's parameters."""
        return last_states(self.of.scorer, sequences(rollout.held, rows))

    def _seen(self, prompts: list[Any], pictures: list[Tensor], group: Tensor, *, first: int) -> Rollout:
        """Images or videos that were made for these prompts, as the model is shown them. first: the number of the first row, for errors."""
        if self.of.chat.vision is None:
            raise UserError("policy.of: reads words alone, and outputs are pictures; takes a vision-language model")
        encoded = []
        for row, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            kind, pixels = "image" if picture.ndim == 3 else "video", picture.expand(*picture.shape[:-3], 3, -1, -1)
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            words = turns[-1]["content"]
            words = [{"type": "text", "text": words}] if isinstance(words, str) else words
            shown = [*turns[:-1], {**turns[-1], "content": [{"type": kind, kind: pixels}, *words]}]
            try:
                encoded.append(self.of.room.prompt(shown, row))
            except UserError as error:
                raise RefusedRow(first + row, str(error)) from error
        over = torch.full((len(encoded), 1), self.of.chat.stops[0])
        rows, whole = torch.arange(len(encoded)), torch.ones_like(over)
        return self.of.table(encoded, rows, over, whole[:, 0], whole.bool(), sources=prompts, outputs=pictures, group=group)


def reader_of(of: Any) -> Reader:
    """A reader as it is, and that of a language model. Errors: UserError for anything else."""
    if isinstance(of, TransformersPolicy):
        return LastToken(of)
    if isinstance(of, Reader):
        return of
    raise UserError(f"policy.of: got a {type(of).__name__}, takes one that transformers makes, or a reader (`mmalign list readers`)")
