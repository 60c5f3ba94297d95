"""A reward that counts for some rows alone, and is compared among those alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, NotNegative
from mmalign.combinations._parts import Chain, Combination, Rows, Transforms, chosen, or_missing
from mmalign.combinations.transforms import z_score
from mmalign.types import UserError

__all__ = ["among"]

Parts = Mapping[str, Tensor]


def among(
    *, reward: str, eligible: Mapping[str, Finite], weights: Mapping[str, Finite] | None = None, scale: Finite = 1.0,
    eps: NotNegative = 1e-6, transforms: Transforms | None = None,
) -> Combination:  # fmt: skip
    """``sum_k w_k r_k + scale * 1[eligible] * z(reward)``, z by mean and deviation of the eligible rows of the row's group.

    Rows that are not eligible have the sum alone, and are in no mean: a refusal's helpfulness says nothing of how helpful answers are. A
    row that is eligible alone in its group has z = 0.

    Args:
        reward: the name of the one that counts for eligible rows. eligible: name -> least score; a row is eligible where each is reached.
        weights: of the rewards that all rows are summed by; all but ``reward`` and those of ``eligible``, with 1, by default.
        scale: of z. eps: added to the deviation, in units of the reward.

    A row without a summed score has none, nor one that only a missing ``eligible`` score could tell; a missing ``reward`` leaves an
    eligible row without one, and no other.
    Paper: AlphaAlign, https://arxiv.org/abs/2507.14987: safety for every row, helpfulness normalised among answers to benign prompts.

    Errors: UserError for no condition, and for names that are not there.

    Examples:
        >>> parts = {"safe": torch.tensor([1.0, 1.0, -1.0]).double(), "ok": torch.tensor([1.0, 1.0, 0.0]).double()}
        >>> both = mm.combinations.among(reward="help", eligible={"ok": 0.5}, eps=0.0)
        >>> both({**parts, "help": torch.tensor([0.0, 2.0, 9.0]).double()}, torch.tensor([0, 0, 0]), ["?"] * 3)
        tensor([ 0.2929,  1.7071, -1.0000], dtype=torch.float64)
    """
    if not eligible or reward in eligible:
        raise UserError(f"among.eligible: got {dict(eligible)}, takes name -> least score of one reward or more, other than {reward!r}")
    chain, standard = Chain("among", transforms), z_score(eps=eps)

    def of(parts: Parts, rows: Rows) -> Tensor:
        parts = chain.apply(parts, rows)
        conditions = chosen("among", "eligible", eligible, parts)
        (own,) = chosen("among", "reward", [reward], parts)
        names = list(weights) if weights is not None else [name for name in parts if name not in eligible and name != own]
        inside = torch.stack([parts[name] >= eligible[name] for name in conditions]).all(0)
        outside = torch.stack([parts[name] < eligible[name] for name in conditions]).any(0)
        total = torch.zeros_like(parts[own])
        for name in chosen("among", "weights", names, parts) if names else ():
            total = total + (1.0 if weights is None else weights[name]) * parts[name]
        compared = standard.of(or_missing(parts[own], inside), rows, None)
        return or_missing(total + scale * torch.where(inside, compared, torch.zeros_like(compared)), inside | outside)

    return Combination("among", of, chain)
