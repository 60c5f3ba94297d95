"""A reader that looks at an output, and at what the person who judges it has said of others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.policies.scorers._seeded import Seeded
from mmalign.policies.scorers.readers import Reader, reader_of
from mmalign.policies.transformers import TransformersPolicy
from mmalign.records import Pair, Records, once, read
from mmalign.types import EVERY, Rollout, UserError

__all__ = ["ComparisonsReader", "with_comparisons"]

LOOK = 100_000  # records, of which a person's comparisons are gathered


def with_comparisons(of: TransformersPolicy | Reader, *, records: Records | Sequence[Any], most: Count = 8) -> ComparisonsReader:
    """What another reader makes of an output, and beside it some comparisons of the row's annotator: better answer less worse, as features.

    The features are ``[h, d_1 .. d_most]`` with ``d = (2 p - 1) (h_w - h_l)`` of a comparison, NaN where there are fewer. Which of a
    person's are read is drawn anew in each step; as a reward it is the first ones. One in which the row itself stands is left out: its
    label is what is to be told. Of a row of nobody, or of a person who has compared nothing, there are none. Takes the head
    ``encoded_user``.

    Args:
        of: what reads, as of ``scorer``; no gradient goes through what it makes of comparisons.
        records: pairs with an ``annotator``. most: comparisons of a person that are read at once.

    Somebody whom the run has not seen is served without training, by comparisons of theirs: ``trained(comparisons=...)``.

    Paper: VPL, arXiv 2408.10075, sec. 4: an encoder of a person's labelled comparisons.

    Errors: UserError for records that are no pairs, and where none has an annotator.
    """
    return ComparisonsReader(reader_of(of), records, most)


class ComparisonsReader:
    """See ``with_comparisons``; a ``readers.Reader``. ``views``: how many features there are in place of one."""

    def __init__(self, of: Reader, records: Any, most: int):
        self.of, self.most, self.views = of, most, 1 + most
        self.model, self.sets, self.rows_at_once, self.differentiable = of.model, of.sets, of.rows_at_once, of.differentiable
        self.width = self.views * of.width
        self.known: dict[str, list[Pair]] = {}
        self.learn(records)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.of.device

    def learn(self, records: Records | Sequence[Any]) -> None:
        """Takes these comparisons in place of those that are known of their annotators. Errors: as of ``with_comparisons``."""
        coming = records if isinstance(records, Sequence) else once(islice(records.stream(seed=0), LOOK))
        found: dict[str, list[Pair]] = {}
        for record in coming:
            if not isinstance(record, Pair):
                raise UserError(f"policy.of.records: got a {type(record).__name__}, takes pairs")
            if record.annotator and record.strength == record.strength:
                found.setdefault(record.annotator, []).append(record)
        if not found:
            raise UserError("policy.of.records: got none with a label and an annotator, takes pairs that say whose they are")
        self.known |= found

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the reader cannot be given."""
        return self.of.refusals(prompts)

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """As the reader reads them, and a seed of what is drawn. Errors: those of the reader."""
        seed = -1 if rng is None else int(torch.randint(2**31, (), generator=rng))
        rollout = self.of.read(prompts, outputs, group, rng, part=part)
        return replace(rollout, held=Seeded(rollout.held, torch.full((len(rollout.prompts),), seed)))

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, (1 + most) H]`` float32, of which the first H are differentiable as the reader's are."""
        own = self.of.features(replace(rollout, held=rollout.held.of), rows)
        beside = torch.full((len(rows), self.most, own.shape[1]), torch.nan, dtype=own.dtype, device=own.device)
        who = rollout.columns.get("annotator", [""] * len(rollout.prompts))
        wanted = [self._drawn(rollout, row, who[row]) for row in rows.tolist()]
        several = {id(pair): pair for some in wanted for pair in some}
        if several:
            with torch.no_grad():
                made = dict(zip(several, self._differences(list(several.values())), strict=True))
            for place, some in enumerate(wanted):
                for at, pair in enumerate(some):
                    beside[place, at] = made[id(pair)]
        return torch.cat([own, beside.flatten(1)], 1)

    def _drawn(self, rollout: Rollout, row: int, name: Any) -> list[Pair]:
        """The comparisons of a row's annotator that stand beside it."""
        prompt, output = rollout.prompts[row], rollout.outputs[row]
        others = [pair for pair in self.known.get(str(name or ""), []) if not _holds(pair, prompt, output)]
        seed = int(rollout.held.seeds[row])
        if seed < 0 or len(others) <= self.most:
            return others[: self.most]
        rng = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(str(name).encode()))
        return [others[at] for at in torch.randperm(len(others), generator=rng)[: self.most].tolist()]

    def _differences(self, pairs: Sequence[Pair]) -> Tensor:
        """``[P, H]``: what the better answers have more than the worse ones, less the surer a label is not."""
        looked = [read(pair) for pair in pairs]
        prompts, outputs = [pair.prompt for pair in looked for _ in range(2)], [one for pair in looked for one in (pair.first, pair.second)]
        rollout = self.of.read(prompts, outputs, torch.arange(len(looked)).repeat_interleave(2), None)
        parts = torch.arange(len(prompts)).split(2 * max(1, self.rows_at_once // 2))
        states = torch.cat([self.of.features(rollout, part) for part in parts])
        sure = torch.tensor([2 * pair.strength - 1 for pair in looked], dtype=states.dtype, device=states.device)
        return sure[:, None] * (states[0::2] - states[1::2])


def _holds(pair: Pair, prompt: Any, output: Any) -> bool:
    """Whether that output stands in the pair."""
    if pair.prompt != prompt:
        return False
    return any(torch.equal(one, output) if isinstance(one, Tensor) else one == output for one in (pair.first, pair.second))
