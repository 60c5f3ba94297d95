"""What a language model's rollout is scored again from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.shown import Shown, seen
from mmalign.policies.language.prompts.vision import Vision, inputs_of
from mmalign.stacking import offset, stacked, stacked_by_name


@dataclass(frozen=True)
class Completions:
    """Rows as token ids behind P prompts.

    encoded: P prompts, as the model is given them. sources: P strings or conversations that they were made of. following: ``[P]`` the place
    of the next other prompt of the rollout that a prompt came with; its own where it was alone. which: ``[B]`` the prompt of each row.
    tokens: ``[B, T]``, filled up with anything. lengths: ``[B]``. cut: ``[B]`` bool, rows that came to no end; False where they were given.
    refs: name -> ``[B, T]`` log-probabilities. phrases: row numbers -> phrases of these rows, read once. contrasts: name -> P prompts,
    made once. read: ``[B, T]``, allowed: ``[B, T, W]``, as of ``prefixes.Sequences``. truth: ``[B, T]``, what stands at each place of what
    a prompt shows, of rows that are taught by it. shown: of each of the B rows the replies with pictures; empty where there are none.
    """

    vision: Vision | None
    encoded: list[Prompt]
    sources: list[Any]
    following: Tensor
    which: Tensor
    tokens: Tensor
    lengths: Tensor
    cut: Tensor
    refs: dict[str, Tensor] = field(default_factory=dict)
    phrases: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    contrasts: dict[str, list[Prompt]] = field(default_factory=dict)
    read: Tensor | None = None
    allowed: Tensor | None = None
    truth: Tensor | None = None
    shown: tuple[Shown, ...] = ()

    @staticmethod
    def of_rows(
        vision: Vision | None, encoded: Sequence[Prompt], sources: Sequence[Any], which: Tensor, tokens: Tensor, lengths: Tensor
    ) -> Completions:
        """Rows of one rollout, or some of them, among all of its P prompts."""
        following = (torch.arange(len(encoded)) + 1) % max(len(encoded), 1)
        whole = torch.zeros(len(which), dtype=torch.bool)
        return Completions(vision, list(encoded), list(sources), following, which, tokens, lengths, whole)

    @cached_property
    def prompts(self) -> list[Tensor]:
        """Ids of the P prompts."""
        return [torch.tensor(prompt.ids) for prompt in self.encoded]

    @cached_property
    def extras(self) -> Sequence[Mapping[str, Tensor]]:
        """Further inputs of the P prompts, see ``vision.inputs_of``."""
        return inputs_of(self.vision, self.encoded)

    def digests(self, mask: Tensor) -> list[bytes]:
        """What each row is told apart by, 16 bytes: ids and pixels of its prompt, its own ids, those that ``mask [B, T]`` counts."""
        known = [table for table in (self.read, self.allowed) if table is not None]
        before = [b"".join(table[row].numpy().tobytes() for table in known) for row in range(len(self.which))]
        for row, shown in enumerate(self.shown):
            before[row] += repr(seen(shown)).encode() if shown else b""
        heads = [blake2b(repr((prompt.ids, prompt.digest)).encode()).digest() for prompt in self.encoded]
        ends = [
            tokens[:length].numpy().tobytes() + live[:length].numpy().tobytes() + read
            for tokens, live, length, read in zip(self.tokens, mask, self.lengths.tolist(), before, strict=True)
        ]
        return [blake2b(heads[place] + end, digest_size=16).digest() for place, end in zip(self.which.tolist(), ends, strict=True)]

    def take(self, rows: Tensor) -> Completions:
        """All prompts stay: rows may be compared behind those of others."""
        kept: dict[str, Any] = {name: getattr(self, name)[rows] for name in ("which", "tokens", "lengths", "cut")}
        refs = {name: table[rows] for name, table in self.refs.items()}
        read, allowed, truth = (None if table is None else table[rows] for table in (self.read, self.allowed, self.truth))
        shown = tuple(self.shown[row] for row in rows.tolist()) if self.shown else ()
        return replace(self, **kept, refs=refs, phrases={}, read=read, allowed=allowed, truth=truth, shown=shown)

    @staticmethod
    def join(parts: Sequence[Completions]) -> Completions:
        """Prompts that several parts have alike, those of one rollout, are kept once."""
        keys = [tuple((prompt.ids, prompt.digest) for prompt in part.encoded) for part in parts]
        distinct = dict(zip(reversed(keys), reversed(parts), strict=True))  # of each the first that has it
        lists, counts = list(distinct.values()), [len(part.encoded) for part in distinct.values()]
        starts = {key: sum(counts[:number]) for number, key in enumerate(distinct)}
        return Completions(
            parts[0].vision,
            encoded=[prompt for part in lists for prompt in part.encoded],
            sources=[prompt for part in lists for prompt in part.sources],
            following=offset([part.following for part in lists], counts),
            which=torch.cat([part.which + starts[key] for part, key in zip(parts, keys, strict=True)]),
            tokens=stacked([part.tokens for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            cut=torch.cat([part.cut for part in parts]),
            refs=stacked_by_name([part.refs for part in parts]),
            read=None if parts[0].read is None else stacked([part.read for part in parts if part.read is not None]),
            allowed=None if parts[0].allowed is None else stacked([part.allowed for part in parts if part.allowed is not None]),
            truth=None if parts[0].truth is None else stacked([part.truth for part in parts if part.truth is not None]),
            shown=tuple(row for part in parts for row in part.shown or ((),) * len(part.which)),
        )
