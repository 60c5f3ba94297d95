"""Networks of which some inputs are left out: one draw of dropout, held still, as a member of an ensemble."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

__all__: list[str] = []  # no policy


@contextmanager
def thinned(*modules: nn.Module, share: float, seed: int) -> Iterator[None]:
    """While the block lasts, each linear layer sees a part of its inputs alone, and that part times ``1 / (1 - share)``.

    Dropout before every weight layer, whose draws are samples of an approximate posterior (Gal and Ghahramani, arXiv 1506.02142). One draw
    holds for all rows and places (as in arXiv 1512.05287, sec. 4), so that a pass is one network: what it says of a row does not depend on
    the rows beside it.

    share: of inputs that are left out. seed: of the draw, with the names of layers.
    """
    with ExitStack() as stack:
        for place, module in enumerate(modules):
            for name, layer in module.named_modules():
                if isinstance(layer, nn.Linear):
                    rng = torch.Generator().manual_seed((seed * 1_000_003 + zlib.crc32(f"{place} {name}".encode())) % 2**63)
                    kept = torch.rand(layer.in_features, generator=rng) >= share
                    stack.enter_context(layer.register_forward_pre_hook(_scaling(kept.float() / (1 - share))))
        yield


def _scaling(weights: torch.Tensor) -> Any:
    def before(layer: nn.Module, inputs: Any) -> Any:
        return (inputs[0] * weights.to(inputs[0]), *inputs[1:])

    return before
