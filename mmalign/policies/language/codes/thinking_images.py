"""Rows that think in words and then draw: a text, and behind it the codes of an image, one table for both (T2I-R1).

The words are the language model's own distribution, as ``transformers`` has it, without guidance; the codes are ``image_tokens``'. An
advantage is a row's, so what an image is worth is credited to its words too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count
from mmalign.policies.language.codes.image_tokens import CALL, ImageTokensPolicy
from mmalign.policies.language.drawing.drawing import Drawn
from mmalign.policies.language.models.logits import COMPARED, DISTRIBUTION
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.scoring import reference_models, step_tables
from mmalign.policies.language.scoring.completions import Completions
from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.language.scoring.step_tables import steps_of
from mmalign.stacking import stacked_by_name
from mmalign.types import EVERY, Adapter, Behavior, Need, Rollout, Steps, UserError

__all__ = ["ThinkingImagesPolicy", "thinking_images"]

ADAPTER = Adapter("token", frozenset({"old", "refs", *DISTRIBUTION, *COMPARED, "recall", "traced"}), call=lambda arguments: CALL)


def thinking_images(of: ImageTokensPolicy, *, thoughts: Count = 64) -> ThinkingImagesPolicy:
    """A policy whose rows are a text and then an image: what an ``image_tokens`` model says to a prompt, and draws behind both.

    Args:
        of: the policy that draws; its model writes the text, at its own temperature (``of: {of: {temperature: ...}}``).
        thoughts: tokens of a text at most. It ends with the model's end of text, which is not read before the image.

    Errors: UserError for another policy, and one that is taught by force, which draws behind given codes.
    """
    if not isinstance(of, ImageTokensPolicy):
        raise UserError(f"policy.of: got a {type(of).__name__}, takes one that image_tokens makes")
    if of.teacher_forcing is not None:
        raise UserError("policy.of.teacher_forcing: rows that think draw freely; takes none")
    return ThinkingImagesPolicy(of, thoughts=thoughts)


@dataclass(frozen=True)
class Thought:
    """Rows of one rollout: their texts behind prompts, and their codes behind prompts and texts. refs: name -> ``[B, T]`` of both."""

    words: Completions
    images: Completions
    refs: dict[str, Tensor] = field(default_factory=dict)

    def digests(self, mask: Tensor) -> list[bytes]:
        """What each row is told apart by, 16 bytes; mask: ``[B, T]``, the cells that count. The codes' prompts hold the words."""
        return self.images.digests(mask[:, -self.images.tokens.shape[1] :])

    def take(self, rows: Tensor) -> Thought:
        """Some rows."""
        return Thought(self.words.take(rows), self.images.take(rows), {name: table[rows] for name, table in self.refs.items()})

    @staticmethod
    def join(parts: Sequence[Thought]) -> Thought:
        """Rows of the first part first."""
        words, images = (Completions.join([getattr(part, name) for part in parts]) for name in ("words", "images"))
        return Thought(words, images, stacked_by_name([part.refs for part in parts]))


class ThinkingImagesPolicy:
    """See ``thinking_images``. Columns of a table: ``thoughts`` of words, of which a row's length counts, and then the codes."""

    kind = ADAPTER.kind
    gives = ADAPTER.gives
    log_probs, remember, remembered, digests = step_tables.log_probs, step_tables.remember, step_tables.remembered, step_tables.digests

    def __init__(self, of: ImageTokensPolicy, *, thoughts: int):
        self.of, self.writer, self.sets, self.rows_at_once, self.thoughts = of, of.of, of.sets, of.rows_at_once, thoughts
        self.room = replace(of.room, max_completion=of.room.max_completion + thoughts)
        self.writing = self.writer.drawing._replace(most=thoughts)

    @property
    def tolerance(self) -> float:
        """Nats that a log-probability may differ by when it is scored again."""
        return self.of.tolerance

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return self.sets.trained

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named parameter set in place of the current one."""
        return self.sets.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Errors: UserError, as of ``image_tokens``."""
        self.of.refer(name, other, examples)

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, as of ``image_tokens``, with room for the words."""
        return self.of.refusals(prompts) | self.room.refusals(prompts)

    # Rollout

    @torch.no_grad()
    def sample(
        self, prompts: list[Any], group_size: int, rng: torch.Generator, *, step: int = 0, behaviors: Sequence[Behavior] = (),
        part: slice = EVERY,
    ) -> Rollout:  # fmt: skip
        """``group_size`` texts and images of each prompt. ``metrics``: ``length`` (tokens of a text), ``cut`` (without an end)."""
        codes = self.of.drawing.most
        shape = (len(prompts), group_size, self.thoughts + codes)
        uniform = torch.rand(shape, generator=rng, dtype=torch.float64)[part].flatten(0, 1)
        own = list(range(len(prompts))[part])
        asked = [self.room.prompt(prompts[number], number) for number in own]
        which = torch.arange(len(own)).repeat_interleave(group_size)
        words, behind = self._written(asked, which, uniform[:, : self.thoughts])
        rows = torch.arange(len(which))
        drawn = self.of._drawn(behind, rows, uniform[:, self.thoughts :], torch.zeros_like(rows), ())
        sources = [prompts[number] for number in own]
        held = Thought(self._completions(asked, sources, which, words), self._images(behind, [sources[n] for n in which], drawn.codes))
        rollout = self._table([sources[place] for place in which.tolist()], held, torch.tensor(own)[which])
        rollout.log_probs = self.log_probs(rollout, self.rows_at_once)
        rollout.metrics.update(length=float(words.lengths.double().mean()), cut=float(words.cut.double().mean()))
        return rollout

    def _table(self, prompts: list[Any], held: Thought, group: Tensor) -> Rollout:
        """A rollout from words and codes, its images decoded."""
        words, codes = held.words, held.images.tokens
        live = torch.arange(self.thoughts) < words.lengths.unsqueeze(1)
        return Rollout(
            prompts=prompts,
            outputs=torch.cat([self.of.pixels.decode(some) for some in codes.split(self.rows_at_once)]),
            log_probs=torch.full((len(codes), self.thoughts + codes.shape[1]), torch.nan, dtype=torch.float64),
            mask=torch.cat([live, torch.ones(codes.shape, dtype=torch.bool)], dim=1),
            group=group,
            held=held,
        )

    def encode(self, *args: Any, **settings: Any) -> NoReturn:
        """Errors: UserError: nobody knows what a given image was thought of with."""
        raise UserError("policy: thinking_images draws its own rows, and records hold images alone; takes policy: {use: image_tokens}")

    def _written(self, asked: Sequence[Prompt], which: Tensor, uniform: Tensor) -> tuple[Drawn, list[Prompt]]:
        """Texts of rows, filled up to ``thoughts`` columns, and what each row's image begins behind."""
        drawn = self.writer.drawer([prompt.ids for prompt in asked], which, uniform, self.writing)
        tokens = nn.functional.pad(drawn.tokens, (0, self.thoughts - drawn.tokens.shape[1]))
        ends = set(self.writing.stops.tolist())
        behind = []
        for place, line, length in zip(which.tolist(), tokens.tolist(), drawn.lengths.tolist(), strict=True):
            said = [token for token in line[:length] if token not in ends]
            behind.append(replace(asked[place], ids=tuple(self.of.layout.behind([*asked[place].ids, *said])), types={}))
        return drawn._replace(tokens=tokens), behind

    def _completions(self, asked: Sequence[Prompt], sources: Sequence[Any], which: Tensor, words: Drawn) -> Completions:
        held = Completions.of_rows(self.writer.chat.vision, asked, sources, which, words.tokens, words.lengths)
        return replace(held, cut=words.cut)

    def _images(self, behind: Sequence[Prompt], sources: Sequence[Any], codes: Tensor) -> Completions:
        lengths = torch.full((len(codes),), codes.shape[1])
        return Completions.of_rows(None, behind, sources, torch.arange(len(codes)), codes, lengths)

    @torch.no_grad()
    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> Tensor:
        """Images as a user gets them, one seed for each prompt; call as of ``image_tokens``, of the codes."""
        return self.traced(prompts, seeds, **call).outputs  # type: ignore[no-any-return]

    def drawn(self, prompts: list[Any], seeds: list[int], **call: Any) -> tuple[list[str], Tensor]:
        """What ``generate`` gives, and before it the texts that the images were drawn behind."""
        rollout = self.traced(prompts, seeds, **call)
        words: Completions = rollout.held.words
        lines = zip(words.tokens.tolist(), words.lengths.tolist(), strict=True)
        return [self.writer.chat.text(line[:length]) for line, length in lines], rollout.outputs

    @torch.no_grad()
    def traced(self, prompts: list[Any], seeds: list[int], **call: Any) -> Rollout:
        """What ``generate`` gives, as rows of words and codes that can be scored."""
        scale, manner = self.of.manner(call)
        asked = [self.room.prompt(prompt, number) for number, prompt in enumerate(prompts)]
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniform = torch.stack([torch.rand(self.thoughts + manner.most, generator=rng, dtype=torch.float64) for rng in rngs])
        rows = torch.arange(len(prompts))
        words, behind = self._written(asked, rows, uniform[:, : self.thoughts])
        parts = rows.split(self.rows_at_once)
        codes = torch.cat([self.of._images(behind, some, uniform[some, self.thoughts :], manner, scale).codes for some in parts])
        held = Thought(self._completions(asked, prompts, rows, words), self._images(behind, prompts, codes))
        return self._table(list(prompts), held, rows)

    # Scores

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The table of some rows, and of some columns (all, by default), with gradient; ``needs`` as of ``image_tokens``, but contrasts."""
        return steps_of(self, rollout, rows, columns, needs)

    def scored(
        self, rollout: Rollout, rows: Tensor, cells: Tensor, *, numbers: frozenset[Need] = frozenset(), references: Sequence[str] = ()
    ) -> dict[Need, Tensor]:
        """Tables of some rows, ``[R, T]``: words by the language model, and codes beside them."""
        settings: dict[str, Any] = {"numbers": numbers, "references": references}
        of_words, of_codes = sequences(rollout.held.words, rows), sequences(rollout.held.images, rows)
        by_writer, by_painter = (partial(reference_models.running, policy) for policy in (self.writer, self.of))
        words = self.writer.scorer(of_words, cells[:, : self.thoughts], using=by_writer, **settings)
        codes = self.of.scorer(of_codes, cells[:, self.thoughts :], using=by_painter, **settings)
        return {name: torch.cat([words[name], codes[name]], dim=1) for name in words}
