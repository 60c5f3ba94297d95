"""Frozen weights of a language model in 4 bits, under LoRA (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): torchao's NF4, on any device.

Each block of 64 numbers has a scale, in 8 bits with a scale of their own; each number is one of 16 quantiles of a normal distribution.
Arithmetic stays in the type that the weights had: a layer's weights are made again for its forward and its backward pass, so rollout,
scores and references see the same rounded model. Output embeddings, norms and what stands outside of repeated blocks stay as they are.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mmalign.policies.adapters import fits_in_four_bits, store_in_four_bits
from mmalign.policies.settings import EngineSettings
from mmalign.types import UserError


def layers_of(model: Any) -> dict[str, nn.Linear]:
    """Frozen linear layers of repeated blocks whose weights come in whole blocks, by name."""
    blocks = tuple(f"{name}." for name, child in model.named_modules() if isinstance(child, nn.ModuleList))
    return {
        name: layer for name, layer in model.named_modules() if name.startswith(blocks) and "lora_" not in name and fits_in_four_bits(layer)
    }


def stored(model: Any, *, lora: bool, engine: EngineSettings | None) -> int:
    """``store``, of a model of which LoRA alone is trained. Errors: UserError for another, and as there.

    engine: a server that samples; it has weights that are not rounded so.
    """
    if engine is not None:
        raise UserError(
            "policy.memory.storage: got 'nf4' beside policy.engine, whose server has other weights than the rounded ones; takes one"
        )
    if not lora:
        raise UserError("policy.memory.storage: got 'nf4', and more is trained than LoRA; takes lora, for weights that are not trained")
    return store(model)


def store(model: Any) -> int:
    """Rounds weights in place; returns how many layers. Errors: UserError without torchao, and where there is no such layer."""
    layers = layers_of(model)
    store_in_four_bits(layers.values())
    if not layers:
        raise UserError(f"policy.memory.storage: got 'nf4', and no repeated block of {type(model).__name__} has a frozen linear layer")
    return len(layers)
