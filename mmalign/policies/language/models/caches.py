"""Caches for prompts that many completions share: filled no further than they are read, and written once for all rows of a prompt."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Filled(Exception):
    """Thrown out of a model's ``forward`` once its last layer's keys and values are known."""


class Filling(DynamicCache):
    """A cache that stops the model which writes into it at the keys and values of its last layer, number ``last``."""

    def __init__(self, last: int):
        super().__init__()
        self.last = last

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As of every cache. Errors: Filled, behind the last layer."""
        states: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.last:
            raise Filled
        return states


class Behind(DynamicLayer):
    """A layer for rows ``which [R]`` that go on from prompts: the prompts' keys and values, and behind them those of one call."""

    def __init__(self, prompts: DynamicLayer, which: Tensor, *, equal: bool):
        super().__init__()
        self.which, self.equal = which, equal
        self.keys, self.values, self.dtype, self.device = prompts.keys, prompts.values, prompts.dtype, prompts.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """``[R, heads, L + T, D]`` each. Nothing is added to the layer."""
        own = zip((self.keys, self.values), (key_states, value_states), strict=True)
        keys, values = (Joined.apply(prompts, rows, self.which, self.equal) for prompts, rows in own)
        return keys, values


class Joined(torch.autograd.Function):
    """``[P, heads, L, D]`` of prompts and ``[R, heads, T, D]`` of rows as ``[R, heads, L + T, D]``, each number written once."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """inputs: prompts, rows, ``which [R]``, and whether rows of a prompt stand side by side in groups of one size."""
        prompts, rows, ctx.which, ctx.equal = inputs
        ctx.count, width = prompts.shape[0], prompts.shape[-2]
        whole: Tensor = rows.new_empty((*rows.shape[:-2], width + rows.shape[-2], rows.shape[-1]))
        before, behind = whole.tensor_split([width], dim=-2)
        behind.copy_(rows)
        if ctx.equal:
            before.unflatten(0, (ctx.count, -1)).copy_(prompts.unsqueeze(1))
        else:
            before.copy_(prompts[ctx.which])
        ctx.width = width
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """A prompt's is the sum of its rows'."""
        before, behind = gradients[0].tensor_split([ctx.width], dim=-2)
        if ctx.equal:
            prompts = before.unflatten(0, (ctx.count, -1)).sum(1)
        else:
            prompts = before.new_zeros((ctx.count, *before.shape[1:])).index_add_(0, ctx.which, before)
        return prompts, behind, None, None


def filled(backbone: nn.Module, inputs: dict[str, Any]) -> DynamicCache:
    """A cache of one call, of which nothing is computed that comes after the last layer's keys and values."""
    config = backbone.config.get_text_config()  # type: ignore[union-attr, operator]
    cache = Filling(config.num_hidden_layers - 1)
    with suppress(Filled):
        backbone(use_cache=True, return_dict=True, past_key_values=cache, **inputs)
    return cache


def go_on(cache: DynamicCache, which: Tensor, *, equal: bool | None = None) -> DynamicCache:
    """A cache of prompts as one for rows ``which [R]``, for one call. equal: of ``equal_groups``, where it is known."""
    rows = DynamicCache()
    equal = equal_groups(which, len(cache.layers[0].keys)) if equal is None else equal
    rows.layers = [Behind(layer, which, equal=equal) for layer in cache.layers]
    return rows


def equal_groups(which: Tensor, prompts: int) -> bool:
    """Whether rows stand in groups of one size, in the order of their prompts."""
    return torch.equal(which, torch.arange(prompts, device=which.device).repeat_interleave(len(which) // prompts))
