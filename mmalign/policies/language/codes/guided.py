"""How codes are scored: a model's states behind a prompt, and behind none where guidance counts, and its head on both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmalign.policies.language.codes.layouts import Layout
from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.prefixes import Sequences


@dataclass(frozen=True)
class GuidedFit:
    """As ``fitting.Fit``, of rows whose tokens are codes: ``u + scale (c - u)``, c the logits behind the prompt and u behind none.

    scale 1: c alone, and nothing is run without a prompt. The gradient goes through both.
    """

    layout: Layout
    scale: float
    shared: bool
    device: torch.device

    @property
    def backbone(self) -> nn.Module:
        """What reads ids and tokens of codes."""
        return self.layout.backbone

    def alone(self) -> GuidedFit:
        """The same, each row with its own prompt."""
        return replace(self, shared=False)

    def states(self, rows: Sequences) -> Tensor:
        """``[R, t, H]`` that predict the codes of rows; with guidance ``[R, t, 2 H]``, those behind the prompt first."""
        rows = prefixes.moved(rows, self.device)
        tokens = self.layout.written(rows.tokens if rows.read is None else rows.read)
        rows = replace(rows, tokens=tokens, read=None, lengths=torch.full_like(rows.lengths, tokens.shape[1]))
        places = self.layout.places[: rows_width(self.layout, tokens)].to(self.device)
        if self.scale == 1:
            return prefixes.run(self.backbone, rows, shared=self.shared)[:, places]
        both = prefixes.run(self.backbone, self._doubled(rows), shared=self.shared)[:, places]
        return torch.cat(both.chunk(2), dim=-1)

    def head(self, hidden: Tensor) -> Tensor:
        """Those states ``[N, H or 2 H]`` as logits ``[N, codes]``."""
        if self.scale == 1:
            return self.layout.logits(hidden)
        return mixed([self.layout.logits(part) for part in hidden.chunk(2, dim=-1)], self.scale)

    def _doubled(self, rows: Sequences) -> Sequences:
        """Each row twice, the second time without its prompt; what comes to the same without one is run once."""
        empty, which = unprompted(self.layout, rows.prompts)
        whole = [*rows.prompts, *(prompt.to(self.device) for prompt in empty)]
        behind = which.to(self.device)[rows.which] + len(rows.prompts)
        return Sequences(whole, torch.cat([rows.which, behind]), rows.tokens.repeat(2, 1), rows.lengths.repeat(2))


def unprompted(layout: Layout, prompts: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The distinct ids that P prompts leave behind without what they say, and which of those each one does, ``[P]``."""
    empty = [tuple(layout.unprompted(prompt.tolist())) for prompt in prompts]
    distinct = list(dict.fromkeys(empty))
    return [torch.tensor(ids) for ids in distinct], torch.tensor([distinct.index(ids) for ids in empty])


def mixed(logits: list[Tensor], scale: float) -> Tensor:
    """Guidance of logits behind a prompt and behind none, as transformers' own processors have it."""
    given, free = logits
    return free + scale * (given - free)


def rows_width(layout: Layout, tokens: Tensor) -> int:
    """How many codes so many tokens hold."""
    return int((layout.places < tokens.shape[1]).sum())
