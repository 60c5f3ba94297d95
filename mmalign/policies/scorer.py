"""A model as a reward model: what it holds of a finished output, through a linear head, is its score.

A row's decisions are the dimensions that it is scored in, and what stands for their log-probabilities are the scores: no probabilities,
and nothing is sampled. Methods of ``methods.reward_models`` train it on pairs, rankings and thumbs, in the recipe ``offline``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from mmalign.policies.language.contrasts import sequences
from mmalign.policies.language.last_states import last_states
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.transformers import TransformersPolicy
from mmalign.records import RefusedRow
from mmalign.types import EVERY, Adapter, Need, Rollout, Steps, UserError

__all__ = ["ScorerPolicy", "scorer"]

ADAPTER = Adapter("score", frozenset(), call=lambda arguments: ())


def scorer(of: TransformersPolicy, *, scores: Sequence[str] = ("score",), trained: Literal["all", "head"] = "all") -> ScorerPolicy:
    """A reward model: a linear head on what a language or vision-language model holds at the last token of prompt and answer.

    Args:
        of: the model that reads, with what of it is trained (``lora``, ``train``, or all of it). What it says of sampling is not used.
        scores: the dimensions that are scored, by name.
        trained: ``head`` freezes all of ``of``, and the head alone is trained, on its features.

    Errors: UserError for a model of another kind, and for names that are not one or more, each once.
    """
    if not isinstance(of, TransformersPolicy):
        raise UserError(f"policy.of: got a {type(of).__name__}, takes one that transformers makes")
    names = list(scores) if not isinstance(scores, str) else []
    if not names or len({*names}) < len(names) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"policy.scores: got {scores!r}, takes a list of one or more names, each once")
    if trained not in ("all", "head"):
        raise UserError(f"policy.trained: got {trained!r}, takes 'all' or 'head'")
    return ScorerPolicy(of, scores=names, trained=trained)


class ScorerPolicy:
    """See ``scorer``. Scores start at 0, whatever the output is. ``head``: linear, ``[scores, H]``, without a bias, as in transformers."""

    kind = ADAPTER.kind
    gives = ADAPTER.gives

    def __init__(self, of: TransformersPolicy, *, scores: Sequence[str], trained: str):
        self.of, self.scores, self.rows_at_once = of, list(scores), of.rows_at_once
        self.head = nn.Linear(of.model.config.get_text_config().hidden_size, len(self.scores), bias=False, device=of.device)
        nn.init.zeros_(self.head.weight)
        if trained == "head":
            of.model.requires_grad_(False)
            self.sets = ParameterSets(nn.ModuleDict({"head": self.head}))
        else:
            self.sets = of.sets
            self.sets.sets.pop("ref", None)  # a copy that nothing is compared with
            self.sets.add({"head": self.head})

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return self.sets.trained

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named parameter set in place of the current one: ``ema``, ``best``, ..."""
        return self.sets.using(name)

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the model cannot be given."""
        return self.of.refusals(prompts)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> NoReturn:
        """Errors: UserError: a score is compared with nobody else's."""
        raise UserError(f"references.{name}: a reward model has no reference; takes none")

    def sample(self, *args: Any, **settings: Any) -> NoReturn:
        """Errors: UserError: nothing is written here."""
        raise UserError("policy: a reward model scores outputs, and makes none; takes the recipe offline, with records")

    generate = sample

    def encode(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Given outputs as a rollout of one step for each dimension. Errors: RefusedRow, as of the model that reads.

        Answers are read behind their prompts; an image ``[C, H, W]`` in 0..1, or a video ``[F, C, H, W]``, in front of its prompt's words,
        by a model that sees, and what is scored is the end of an answer without any; UserError for one that does not.
        """
        own = [outputs[row] for row in range(len(prompts))[part]]
        if own and isinstance(own[0], Tensor):
            read = self._seen(prompts[part], own, group[part], first=range(len(prompts))[part].start)
        else:
            read = self.of.encode(prompts, outputs, group, rng, part=part)
        shape = (len(read), len(self.scores))
        unsampled = torch.full(shape, torch.nan, dtype=torch.float64)
        return replace(read, log_probs=unsampled, mask=torch.ones(shape, dtype=torch.bool), spans=None)

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

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
        """Nothing: there are no references."""

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The scores of some rows, in some dimensions (all, by default), with gradient."""
        columns = torch.arange(len(self.scores)) if columns is None else columns
        return Steps(self.of_rows(rollout, rows)[:, columns], rollout.mask[rows[:, None], columns[None, :]], kind=ADAPTER.kind)

    def of_rows(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, scores]`` float64: the head on the state behind each row's last token, with gradient."""
        return self.head(last_states(self.of.scorer, sequences(rollout.held, rows))).double().cpu()

    @torch.no_grad()
    def score(self, prompts: Sequence[Any], outputs: Any) -> Tensor:
        """What the model says of outputs, ``[B, scores]`` float64. Errors: RefusedRow for the first that it cannot read."""
        rollout = self.encode(list(prompts), outputs, torch.arange(len(prompts)), torch.Generator())
        return torch.cat([self.steps(rollout, rows).log_probs for rows in torch.arange(len(prompts)).split(self.rows_at_once)])
