"""A run of this package as a reward: a reward model that it trained, or how much more likely a trained language model finds an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.records import RefusedRow
from mmalign.rewards._shared.scorer import Scorer
from mmalign.runs import trained as runs
from mmalign.types import Level, UserError

Score = Callable[[list[Any], Any, Mapping[str, list[Any]]], Tensor]


def trained(run: str, *, part: str | None = None, trust: bool = False) -> Scorer:
    """What a finished run says of an output: the scores of a reward model, or DPO's implicit reward.

    Of a policy of ``scorer`` its scores, by the parameters that its evaluations found best (``best``), or else their moving average. Of a
    language model that was trained with a reference the log-ratio ``log pi - log ref`` of the whole answer, in nats (times beta it is the
    reward that DPO has learned, arXiv 2305.18290, eq. 5).

    run: its folder. part: of several scores the one that counts; all of them by name where it is not said. trust: the run's config may name
    code outside of mmalign.

    A reward model whose reader is differentiable (`mmalign list readers`) hands its gradient to the outputs; what a language or
    vision-language model reads goes through a tokenizer or processor, and has none. Under ``on_latents`` one that reads
    ``noisy_latents`` is shown the latents themselves. NaN for an output that the model cannot read.

    Errors: UserError for a folder without such a run, and a part that it does not score.
    """
    kept = runs.trained(run, trust=trust)
    policy: Any = kept.policy()
    using = "current" if kept.best == "trained" else kept.best
    reads, differentiable = frozenset[str](), False
    if policy.kind == "score":
        names, reads, differentiable, score = list(policy.scores), policy.reads, policy.reader.differentiable, _of_scorer(policy, using)
    elif policy.kind == "token":
        names, score = ["log_ratio"], lambda prompts, outputs, _: _log_ratio(policy, using, prompts, outputs)
    else:
        raise UserError(f"trained.run: {run} trained a policy of kind {policy.kind}, takes one of scorer, or of a language model")
    if part is not None and part not in names:
        raise UserError(f"trained.part: got {part!r}, {run} scores {', '.join(names)}")

    def parts(table: Tensor) -> Any:
        if len(names) == 1 or part is not None:
            return table[:, names.index(part or names[0])]
        return dict(zip(names, table.unbind(1), strict=True))

    def of(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        return parts(_readable(score, prompts, outputs, columns, len(names)))

    def latents(x: Tensor, prompts: list[Any], level: Level | None, columns: Mapping[str, Any]) -> Any:
        return parts(policy.score_latents(prompts, x, level, columns))

    known = latents if policy.kind == "score" and policy.reads_latents else None
    return Scorer("trained", of, differentiable=differentiable, reads=reads, latents=known)


def _of_scorer(policy: Any, using: str) -> Score:
    """A reward model's scores by one of its sets, which it then has for good: what a graph was recorded with stays in place."""
    policy.sets.mix("current", {using: 1.0})
    for parameter in policy.parameters().values():
        parameter.requires_grad_(False)
    return lambda prompts, outputs, columns: policy.score(prompts, outputs, columns, gradient=torch.is_grad_enabled())  # type: ignore[no-any-return]


def _readable(
    score: Score, prompts: Sequence[Any], outputs: Any,
    columns: Mapping[str, Sequence[Any]], width: int,
) -> Tensor:  # fmt: skip
    """``[B, width]``: scores of the rows that can be read, NaN for others."""
    rows, table = list(range(len(prompts))), torch.full((len(prompts), width), torch.nan, dtype=torch.float64)
    while rows:
        try:
            own = {name: [column[row] for row in rows] for name, column in columns.items()}
            table[rows] = score([prompts[row] for row in rows], [outputs[row] for row in rows], own)
            return table
        except RefusedRow as error:
            rows.pop(error.row)
    return table


@torch.no_grad()
def _log_ratio(policy: Any, using: str, prompts: list[Any], outputs: list[Any]) -> Tensor:
    """``[B, 1]``: of the whole answer, nats. using: the set that is compared with ``ref``."""
    rollout = policy.encode(prompts, outputs, torch.arange(len(prompts)), torch.Generator())
    totals = []
    for name in (using, "ref"):
        with policy.using(name):
            parts = torch.arange(len(prompts)).split(policy.rows_at_once)
            totals.append(torch.cat([policy.steps(rollout, rows).log_probs.where(rollout.mask[rows], 0.0).sum(1) for rows in parts]))
    return (totals[0] - totals[1])[:, None]
