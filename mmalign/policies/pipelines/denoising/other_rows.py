"""The prompts of other rows: what a contrast shows a row under."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmalign.types import UserError


def following(prompts: Sequence[str]) -> list[str | None]:
    """For each prompt the next one that differs, the first after the last; None where all are the same."""
    count = len(prompts)
    turned = ((prompts[(row + turn) % count] for turn in range(1, count)) for row in range(count))
    return [next((other for other in others if other != own), None) for own, others in zip(prompts, turned, strict=True)]


def other_prompts(name: str, all_others: Sequence[str | None], rows: Tensor) -> list[str]:
    """Prompts of some rows under a contrast: ``mismatched``, those of ``all_others``; ``ablated``, none (empty).

    Errors: UserError for another name, or where all prompts of the rollout are the same.
    """
    if name == "ablated":
        return [""] * len(rows)
    if name != "mismatched":
        raise UserError(f"contrast: got {name!r}, this policy takes 'mismatched' or 'ablated'")
    others = [all_others[row] for row in rows.tolist()]
    if None in others:
        raise UserError("contrast mismatched: all rows of the update have one prompt, takes two or more (baseline: batch does without)")
    return [other for other in others if other is not None]
