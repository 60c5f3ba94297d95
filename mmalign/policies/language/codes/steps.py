"""The table of some steps of a rollout whose steps are codes: what a policy scores, in the places of what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmalign.needs import kinds
from mmalign.policies.language.logits import COMPARED, DISTRIBUTION, LOG_PROBS
from mmalign.types import Need, Rollout, Steps

Score = Callable[[Tensor, frozenset[Need], Sequence[str]], dict[Need, Tensor]]
"""(cells ``[R, T]`` bool, numbers, references) -> tables ``[R, T]``."""


def steps_of(rollout: Rollout, rows: Tensor, columns: Tensor | None, needs: frozenset[Need], score: Score) -> Steps:
    """Some rows and some columns (all, for None) as ``score`` has them, with gradient.

    needs: of ``refs``, ``kls``, ``reverse_kls``, ``rank``, ``entropy``, ``collision``, ``topk_entropy`` and ``topk_mass`` (all but the
    first over the whole codebook) those are filled.
    """
    columns = torch.arange(rollout.mask.shape[1]) if columns is None else columns
    at, cells = (rows[:, None], columns[None, :]), torch.zeros_like(rollout.mask[rows])
    cells[:, columns] = rollout.mask[at]
    need_kinds, refs = kinds(needs), rollout.held.refs
    compared = {Need(kind, name) for kind in COMPARED if kind in need_kinds for name in refs}
    terms = {Need(kind) for kind in need_kinds & DISTRIBUTION}
    table = score(cells, frozenset(compared | terms), sorted(refs) if compared else ())

    def of_references(kind: str) -> dict[str, Tensor]:
        return {need.name: table[need][:, columns] for need in sorted(compared) if need.kind == kind}

    return Steps(
        log_probs=table[LOG_PROBS][:, columns],
        mask=rollout.mask[at],
        old=None if bool(rollout.log_probs[rollout.mask].isnan().any()) else rollout.log_probs[at],
        refs={name: values[at] for name, values in refs.items()} if "refs" in need_kinds else {},
        kls=of_references("kls"),
        reverse_kls=of_references("reverse_kls"),
        facts={str(need): table[need][:, columns] for need in sorted(compared) if need.kind == "rank"},
        terms={need.kind: table[need][:, columns] for need in sorted(terms)},
        kind="token",
    )
