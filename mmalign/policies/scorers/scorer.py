"""A model as a reward model: what it holds of a finished output, through a head, is its score.

A row's decisions are the dimensions that it is scored in, and what stands for their log-probabilities are the scores: no probabilities,
and nothing is sampled. Methods of ``methods.reward_models`` train it on pairs, rankings and thumbs, in the recipe ``offline``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from mmalign.policies.parameters import ParameterSets
from mmalign.policies.scorers.heads._head import Head
from mmalign.policies.scorers.heads.linear import linear
from mmalign.policies.scorers.readers import Reader, ReaderOfLatents, reader_of
from mmalign.policies.scorers.thinned import thinned
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import EVERY, Adapter, Level, Need, Rollout, Steps, UserError

__all__ = ["ScorerPolicy", "scorer"]

ADAPTER = Adapter("score", frozenset(), call=lambda arguments: ())


def scorer(
    of: TransformersPolicy | Reader,
    *,
    head: Head | None = None,
    scores: Sequence[str] = ("score",),
    trained: Literal["all", "head"] = "all",
) -> ScorerPolicy:
    """A reward model: a head on what a model makes of an output.

    Args:
        of: what reads, with what of it is trained (``lora``, ``train``, or all of it): a language or vision-language model of
            ``transformers``, by its last hidden state at the last token of prompt and answer (what it says of sampling is not used), or
            another reader (`mmalign list readers`).
        head: what makes scores of that (`mmalign list heads`); ``linear`` by default.
        scores: the dimensions that are scored, by name.
        trained: ``head`` freezes all of ``of``, and the head alone is trained, on its features.

    Errors: UserError for a model of another kind, names that are not one or more, each once, a ``lora`` that would be frozen, and
    a head that takes another number of views than the reader has.
    """
    reader = reader_of(of)
    names = list(scores) if not isinstance(scores, str) else []
    if not names or len({*names}) < len(names) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"policy.scores: got {scores!r}, takes a list of one or more names, each once")
    if trained not in ("all", "head"):
        raise UserError(f"policy.trained: got {trained!r}, takes 'all' or 'head'")
    if trained == "head" and reader.sets.lora:
        raise UserError("policy.trained: head freezes all of policy.of, which has a lora; takes one of the two")
    head = linear() if head is None else head
    if (views := getattr(reader, "views", 1)) != head.views:
        got = f"{head.name} takes {head.views}, {type(reader).__name__} reads {views}"
        takes = "takes what goes together: prototypes and two_views, encoded_user and with_comparisons"
        raise UserError(f"policy.head: {got} features in place of one; {takes}")
    return ScorerPolicy(of, reader, head, scores=names, trained=trained)


class ScorerPolicy:
    """See ``scorer``. ``reader``: what makes features, of ``of``. ``head``: the module on top. ``reads``: columns that it needs."""

    kind, gives, spreads = ADAPTER.kind, ADAPTER.gives, "tensor"

    def __init__(self, of: Any, reader: Reader, head: Head, *, scores: Sequence[str], trained: str):
        self.of, self.reader, self.scores, self.rows_at_once, self.reads = of, reader, list(scores), reader.rows_at_once, head.reads
        self.head = head.make(reader.width, self.scores).to(reader.device)
        if trained == "head":
            reader.model.requires_grad_(False)
            self.sets = ParameterSets(nn.ModuleDict({"head": self.head}))
        else:
            self.sets = reader.sets
            self.sets.sets.pop("ref", None)  # a copy that nothing is compared with
            self.sets.add({"head": self.head})

    @property
    def reads_latents(self) -> bool:
        """Whether it can be shown latents."""
        return isinstance(self.reader, ReaderOfLatents)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return self.sets.trained

    def compute_together(self, count: int, world: int, place: int) -> None:
        """See ``TransformersPolicy``. Errors: UserError for another reader."""
        if isinstance(self.of, TransformersPolicy):
            self.of.compute_together(count, world, place)
        elif count > 1:
            raise UserError(f"devices.tensor: got {count}, and {type(self.of).__name__} is no language model of transformers; takes 1")

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named parameter set in place of the current one: ``ema``, ``best``, ..."""
        return self.sets.using(name)

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the model cannot be given."""
        return self.reader.refusals(prompts)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> NoReturn:
        """Errors: UserError: a score is compared with nobody else's."""
        raise UserError(f"references.{name}: a reward model has no reference; takes none")

    def sample(self, *args: Any, **settings: Any) -> NoReturn:
        """Errors: UserError: nothing is written here."""
        raise UserError("policy: a reward model scores outputs, and makes none; takes the recipe offline, with records")

    generate = sample

    def encode(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """Given outputs as a rollout of one step for each dimension. Columns that the head reads are to be put beside its rows.

        Errors: RefusedRow, as of what reads.
        """
        read = self.reader.read(prompts, outputs, group, rng, part=part)
        shape = (len(read), len(self.scores))
        unsampled = torch.full(shape, torch.nan, dtype=torch.float64)
        return replace(read, log_probs=unsampled, mask=torch.ones(shape, dtype=torch.bool), spans=None)

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
        """Nothing: there are no references."""

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The scores of some rows, in some dimensions (all, by default), with gradient."""
        columns = torch.arange(len(self.scores)) if columns is None else columns
        return Steps(self.of_rows(rollout, rows)[:, columns], rollout.mask[rows[:, None], columns[None, :]], kind=ADAPTER.kind)

    def of_rows(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, scores]`` float64: the head on the features of each row, with gradient. Errors: UserError for a column that is missing."""
        if missing := sorted(self.reads - rollout.columns.keys()):
            raise UserError(f"policy.head: reads {', '.join(missing)}, which these records do not say of their rows")
        columns = {name: [column[row] for row in rows.tolist()] for name, column in rollout.columns.items()}
        return self.head(self.reader.features(rollout, rows), columns).double().cpu()  # type: ignore[no-any-return]

    def thinned(self, share: float, seed: int) -> AbstractContextManager[None]:
        """One draw of dropout in front of every linear layer, while the block lasts; see ``thinned``."""
        return thinned(self.reader.model, self.head, share=share, seed=seed)

    def score(
        self, prompts: Sequence[Any], outputs: Any, columns: Mapping[str, list[Any]] | None = None, *, gradient: bool = False
    ) -> Tensor:
        """What the model says of outputs, ``[B, scores]`` float64. Errors: RefusedRow for the first that it cannot read.

        gradient: that of what reads to the outputs, where it has one; else there is none.
        """
        with torch.set_grad_enabled(gradient and self.reader.differentiable):
            rollout = self.encode(list(prompts), outputs, torch.arange(len(prompts)), None)
            rollout.columns = dict(columns or {})
            return torch.cat([self.of_rows(rollout, rows) for rows in torch.arange(len(prompts)).split(self.rows_at_once)])

    def score_latents(
        self, prompts: Sequence[Any], x: Tensor, level: Level | None, columns: Mapping[str, list[Any]] | None = None
    ) -> Tensor:
        """What the model says of latents ``[B, ...]`` at a noise level (None: of clean ones), ``[B, scores]`` float64, with gradient.

        Errors: UserError for latents of another shape than the pipeline's.
        """
        assert isinstance(self.reader, ReaderOfLatents), "asked of what reads outputs alone, see reads_latents"
        return self.head(self.reader.at(list(prompts), x, level), dict(columns or {})).double().cpu()  # type: ignore[no-any-return]
