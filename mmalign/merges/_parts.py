"""What a rule is: how much of each model goes into each block of layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmalign.types import UserError

BASE = "base"  # the name of the policy's own weights among the parts
NUMBERED = re.compile(r"^((?:.*?\.)?\d+)\.")  # a layer of a list of layers


@dataclass(frozen=True)
class Merge:
    """``theta_l = sum_k share_lk theta_k`` for every block l of layers, of effective weights.

    shares: of each block, name of a part -> its share; they add up to 1, and may be below 0. One block: the whole model. ratios: the
    numbers that a search may change, and ``again`` the same rule with others; none, and None, where there is nothing to search.
    """

    shares: tuple[Mapping[str, float], ...]
    ratios: tuple[float, ...] = ()
    again: Callable[[Sequence[float]], Merge] | None = None

    @property
    def parts(self) -> list[str]:
        """The names of what goes into it, each once."""
        return list(dict.fromkeys(name for block in self.shares for name in block))


def blocks(names: Iterable[str], count: int) -> dict[str, int]:
    """Name of a parameter -> its block, 0 to ``count - 1``, in the order in which a model lists its layers.

    The layers of its lists (``model.layers.7``) are dealt out evenly, in their order; what comes before, between or after such lists
    (embeddings, the last norm, the head) counts as one layer each time. Errors: UserError for more blocks than layers.

    Examples:
        >>> blocks(["wte.weight", "h.0.a", "h.0.b", "h.1.a", "ln.weight"], 2)
        {'wte.weight': 0, 'h.0.a': 0, 'h.0.b': 0, 'h.1.a': 1, 'ln.weight': 1}
    """
    layers, of, last = dict[str, int](), dict[str, int](), ""
    for name in names:
        match = NUMBERED.match(name)
        last = match[1] if match else last
        of[name] = layers.setdefault(last if match else f"behind {last}", len(layers))
    if count > len(layers):
        raise UserError(f"rule: got {count} blocks, and this model has {len(layers)} layers, embeddings and head among them; takes fewer")
    return {name: layer * count // len(layers) for name, layer in of.items()}


def proportions(key: str, given: Sequence[float], *, least: float = 0.0, most: float = 1.0) -> tuple[float, ...]:
    """Numbers in a range. Errors: UserError for another, by the config's ``key``."""
    if odd := [value for value in given if not least <= value <= most]:
        raise UserError(f"{key}: got {odd[0]}, takes numbers from {least:g} to {most:g}")
    return tuple(map(float, given))


def with_mean(given: Sequence[float], mean: float) -> tuple[float, ...]:
    """The nearest ratios in 0..1 that have this mean: ``clip(z_l + t, 0, 1)`` with the shift t that gives it (found by bisection).

    Examples:
        >>> [round(ratio, 6) for ratio in with_mean([0.9, 0.5, 1.6], 0.6)]
        [0.6, 0.2, 1.0]
    """
    low, high = -max(given), 1.0 - min(given)  # all 0, and all 1
    for _ in range(100):
        shift = (low + high) / 2
        low, high = (shift, high) if sum(min(1.0, max(0.0, z + shift)) for z in given) < mean * len(given) else (low, shift)
    return tuple(min(1.0, max(0.0, z + high)) for z in given)
