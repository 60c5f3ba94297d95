"""Prompts' pictures hidden from a model while it answers: part of their tokens gets no attention, in any layer of the language model.

What a model says without seeing is what it expects: rejected answers by themselves (bias-driven hallucination sampling, BDHS, of
*Understanding Alignment in Multimodal LLMs*; *recalled*: there, too, a random part of the image's tokens is hidden. That a rejected answer
keeps parts of a chosen one, and is dropped where it says the same, is the caller's affair).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.types import UserError


class HiddenTokens:
    """What is hidden. now: ``[rows, L]`` bool, of the rows that run at the moment, in the first ``L`` columns of their call."""

    def __init__(self, now: Tensor):
        self.now = now

    def take(self, rows: Tensor) -> None:
        """Goes on with some of the rows, or with rows repeated."""
        self.now = self.now[rows]

    @contextmanager
    def over(self, model: Any) -> Iterator[None]:
        """Hides from the model's decoder while the block lasts."""
        with model.get_decoder().register_forward_pre_hook(self._before, with_kwargs=True):
            yield

    def _before(self, module: nn.Module, args: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = arguments.get("attention_mask")
        queries = arguments["inputs_embeds"].shape[1]
        columns = queries + arguments["past_key_values"].get_seq_length()
        if isinstance(mask, dict):
            return args, {**arguments, "attention_mask": {name: self._hidden(part, queries, columns) for name, part in mask.items()}}
        return args, {**arguments, "attention_mask": self._hidden(mask, queries, columns)}

    def _hidden(self, mask: Tensor | None, queries: int, columns: int) -> Tensor:
        """A mask of tokens ``[rows, columns]``, or of attention ``[rows, 1, queries, columns]``, with less to see; None: all before."""
        if mask is None:
            all_seen = torch.ones((len(self.now), 1, queries, columns), dtype=torch.bool, device=self.now.device)
            mask = all_seen.tril(columns - queries)
        hidden = nn.functional.pad(self.now, (0, mask.shape[-1] - self.now.shape[-1]))
        if mask.ndim == 2:
            return mask.masked_fill(hidden, 0)
        own = torch.arange(columns, device=mask.device) == torch.arange(columns - queries, columns, device=mask.device).unsqueeze(1)
        shut = hidden[:, None, None, :] & ~own  # a token goes on seeing itself, so that no row of attention is empty
        return mask & ~shut if mask.dtype == torch.bool else mask.masked_fill(shut, torch.finfo(mask.dtype).min)


def hidden_media(prompts: Sequence[Prompt], share: float, seeds: Sequence[int], placeholders: frozenset[int]) -> list[Tensor]:
    """Of each prompt ``[L]`` bool, which tokens are hidden: each of its media's with probability ``share``. Errors: UserError."""
    if not 0 <= share <= 1:
        raise UserError(f"call.hidden_media: got {share}, takes 0 (all is seen) to 1 (nothing of the images and videos is)")
    hidden = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        inside = torch.tensor([token in placeholders for token in prompt.ids])
        rng = torch.Generator().manual_seed(seed)
        hidden.append(inside & (torch.rand(len(prompt), generator=rng) < share))
    return hidden


def hidden_tokens(some: Sequence[Tensor], device: torch.device) -> HiddenTokens:
    """What is hidden of prompts that end in the same column."""
    width = max(len(hidden) for hidden in some)
    return HiddenTokens(torch.stack([nn.functional.pad(hidden, (width - len(hidden), 0)) for hidden in some]).to(device))
