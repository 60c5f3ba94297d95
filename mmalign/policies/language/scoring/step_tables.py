"""The table of a rollout's steps, and what is remembered of it: the same for words, for codes of an image, and for rows of both.

The functions take a policy first, and its class offers them as methods of its own. All that a policy says itself is ``scored``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from mmalign.needs import DEAD_END, DEAD_END_BEST, kinds
from mmalign.policies.language.models.logits import COMPARED, DISTRIBUTION, LOG_PROBS
from mmalign.policies.language.scoring.contrasts import Others
from mmalign.policies.language.scoring.heads import HEADS, OF_REFERENCE
from mmalign.types import Need, Rollout, Steps


class Scoring(Protocol):
    """A policy whose rows are token ids, whatever these stand for."""

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named set of parameters in place while the block lasts."""

    def scored(
        self, rollout: Rollout, rows: Tensor, cells: Tensor, *, numbers: frozenset[Need] = frozenset(), references: Sequence[str] = ()
    ) -> dict[Need, Tensor]:
        """Tables ``[R, T]`` of some rows where ``cells [R, T]`` are True: ``LOG_PROBS``, and the numbers, as of ``scoring.Scorer``."""


class Contrasting(Scoring, Protocol):
    """One whose rows can be scored behind other prompts than their own."""

    def scored(
        self, rollout: Rollout, rows: Tensor, cells: Tensor, *, numbers: frozenset[Need] = frozenset(), references: Sequence[str] = (),
        behind: Others | None = None,
    ) -> dict[Need, Tensor]:  # fmt: skip
        """As above; behind other prompts, where they are given."""


def log_probs(policy: Scoring, rollout: Rollout, rows_at_once: int) -> Tensor:
    """Log-probabilities ``[B, T]`` of all rows under the parameters that are in place, without gradient."""
    parts = torch.arange(len(rollout)).split(rows_at_once)
    with torch.no_grad():
        return torch.cat([policy.scored(rollout, rows, rollout.mask[rows])[LOG_PROBS] for rows in parts])


def remember(policy: Scoring, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
    """Log-probabilities of a rollout under named parameter sets, without gradient, kept in the rollout."""
    for name in names:
        if name not in rollout.held.refs:
            with policy.using(name):
                rollout.held.refs[name] = log_probs(policy, rollout, rows_at_once)


def remembered(policy: Scoring, rollout: Rollout) -> dict[str, Tensor]:
    """Name -> ``[B, T]``: what ``remember`` keeps in a rollout."""
    return rollout.held.refs  # type: ignore[no-any-return]


def digests(policy: Scoring, rollout: Rollout) -> list[bytes]:
    """What each row is told apart by: its prompt with its pixels, its own ids, and which of these count."""
    return rollout.held.digests(rollout.mask)  # type: ignore[no-any-return]


def steps_of(policy: Scoring, rollout: Rollout, rows: Tensor, columns: Tensor | None, needs: frozenset[Need]) -> Steps:
    """The table of some rows and some columns (all, for None), with gradient.

    needs: of ``refs``, ``kls``, ``reverse_kls`` and ``rank``, of references that were given to ``remember``, and of the numbers of a step's
    distribution (``logits.DISTRIBUTION``), ``activation`` and the heads, those are filled. All but ``refs`` are over the whole vocabulary.
    """
    columns = torch.arange(rollout.mask.shape[1]) if columns is None else columns
    at, need_kinds, refs = (rows[:, None], columns[None, :]), kinds(needs), rollout.held.refs
    compared = {Need(kind, name) for kind in COMPARED if kind in need_kinds for name in refs}
    terms = {Need(kind) for kind in need_kinds & {*DISTRIBUTION, *OF_REFERENCE}} | {need for need in needs if need.kind in HEADS}
    references = sorted(refs) if compared or need_kinds & (OF_REFERENCE | {DEAD_END.kind}) else ()
    table = policy.scored(rollout, rows, cells_of(rollout, rows, columns), numbers=frozenset(compared | terms), references=references)

    def of_references(kind: str) -> dict[str, Tensor]:
        return {need.name: table[need][:, columns] for need in sorted(compared) if need.kind == kind}

    return Steps(
        log_probs=table[LOG_PROBS][:, columns],
        mask=rollout.mask[at],
        old=None if bool(rollout.log_probs[rollout.mask].isnan().any()) else rollout.log_probs[at],
        refs={name: values[at] for name, values in refs.items()} if "refs" in need_kinds else {},
        kls=of_references("kls"),
        reverse_kls=of_references("reverse_kls"),
        facts={f"rank:{name}": ranks for name, ranks in of_references("rank").items()},
        terms={str(need): table[need][:, columns] for need in sorted(table.keys() & {*terms, DEAD_END_BEST})},
        kind="token",
    )


def steps_behind(policy: Contrasting, rollout: Rollout, rows: Tensor, columns: Tensor, behind: Others) -> Steps:
    """The same steps behind other prompts, with gradient, and the references' log-probabilities of them."""
    cells = cells_of(rollout, rows, columns)

    def scored() -> Tensor:
        return policy.scored(rollout, rows, cells, behind=behind)[LOG_PROBS][:, columns]

    refs = dict[str, Tensor]()
    for name in rollout.held.refs:
        with torch.no_grad(), policy.using(name):
            refs[name] = scored()
    return Steps(log_probs=scored(), mask=rollout.mask[rows][:, columns], refs=refs, kind="token")


def cells_of(rollout: Rollout, rows: Tensor, columns: Tensor) -> Tensor:
    """``[R, T]`` bool: the cells of some rows that count, False outside of some columns."""
    cells = torch.zeros_like(rollout.mask[rows])
    cells[:, columns] = rollout.mask[rows][:, columns]
    return cells
