"""A reader that looks at every output three times: as it is, and twice with a part of its model's inputs left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Share
from mmalign.policies.scorers._seeded import Seeded
from mmalign.policies.scorers.readers import Reader, reader_of
from mmalign.policies.scorers.thinned import thinned
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import EVERY, Rollout, UserError

__all__ = ["TwoViewsReader", "two_views"]

SEEDS = 2**31


def two_views(of: TransformersPolicy | Reader, *, share: Share = 0.1) -> TwoViewsReader:
    """What another reader makes of an output, and two views of it: the same under two draws of dropout, for a contrastive term.

    The features are ``[h, h', h'']``, three times as many; h is without dropout. Each step draws anew, and a draw holds for all of its
    rows, so that a view is one network (``thinned``). Read without a generator, as a reward, there is nothing to compare: the views are h.
    Takes the head ``prototypes``, and the method ``bradley_terry_contrastive``.

    Args:
        of: what reads, as of ``scorer``. share: of the inputs of each linear layer, how many a view leaves out.

    Paper: dropout as the only difference of two views is SimCSE's, arXiv 2104.08821, sec. 3; for reward models Secrets of RLHF Part II,
    arXiv 2401.06080, sec. 3 (recalled).

    Deviations: there every row has a draw of its own.

    Errors: UserError for what cannot read, and for a model without a linear layer, of which nothing could be left out.
    """
    reader = reader_of(of)
    if not any(isinstance(layer, nn.Linear) for layer in reader.model.modules()):
        raise UserError("policy.of.of: has no linear layer, whose inputs a view leaves out; takes a reader with a model")
    return TwoViewsReader(reader, share)


class TwoViewsReader:
    """See ``two_views``; a ``readers.Reader``. ``views``: how many features there are in place of one."""

    views = 3

    def __init__(self, of: Reader, share: float):
        self.of, self.share, self.model, self.sets, self.rows_at_once = of, share, of.model, of.sets, of.rows_at_once
        self.width, self.differentiable = self.views * of.width, of.differentiable

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.of.device

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the reader cannot be given."""
        return self.of.refusals(prompts)

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """As the reader reads them, and a seed of the views; of all rows the same. Errors: those of the reader."""
        seed = -1 if rng is None else int(torch.randint(SEEDS, (), generator=rng))
        rollout = self.of.read(prompts, outputs, group, rng, part=part)
        return replace(rollout, held=Seeded(rollout.held, torch.full((len(rollout.prompts),), seed)))

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, 3 H]`` float32, differentiable as the reader's are."""
        inner = replace(rollout, held=rollout.held.of)
        plain = self.of.features(inner, rows)
        parts = [plain, plain.clone(), plain.clone()]
        for seed in sorted({seed for seed in rollout.held.seeds[rows].tolist() if seed >= 0}):
            own = torch.nonzero(rollout.held.seeds[rows] == seed).flatten()
            for view in (1, 2):
                with thinned(self.model, share=self.share, seed=view * SEEDS + seed):
                    parts[view] = parts[view].index_copy(0, own.to(plain.device), self.of.features(inner, rows[own]))
        return torch.cat(parts, 1)
