"""One score made of several attributes, of which a gate says what each counts for an output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, Finite, Positive, Seed
from mmalign.policies.scorers.heads._head import Head
from mmalign.types import UserError

__all__ = ["gated"]


def gated(
    *, attributes: str, verbosity: str | None = None, penalties: dict[str, Finite] | None = None, width: Count = 64,
    temperature: Positive = 1.0, seed: Seed = 0,
) -> Head:  # fmt: skip
    """Head: ``s = sum_i g_i(h) (r_i - lam_i r_verbosity)``, r_i attributes as they were trained, g a softmax of a small network.

    First the attributes are trained, on ratings of each (``score_regression`` with their names as ``scores``, and ``trained: head``), and
    exported; then the gate, on pairs (``bradley_terry``), above the same frozen model (``trained: head``).

    Args:
        attributes: the folder of an export of that run (`mmalign export`), whose attributes stay as they are.
        verbosity: the attribute that others are not to be paid for. None: none.
        penalties: attribute -> lam_i, how much of ``verbosity`` is taken off it (0 where it is not said); ``cov(r_i, r_v) / var(r_v)`` of
            some outputs makes them uncorrelated there (``decorrelating``).
        width: of the gate's hidden layer. temperature: of its softmax. seed: of its first layer; it starts with equal parts.

    Source: ArmoRM, arXiv 2406.12845, eq. 3 to 6; there the gate reads the prompt alone, here the prompt with its answer.

    Errors: UserError for a folder that is no such export, or of a model of other width, for attributes that it has not, and for several
    scores.
    """
    if penalties and verbosity is None:
        raise UserError("policy.head.verbosity: missing; penalties take it off other attributes")

    def make(features: int, scores: list[str]) -> nn.Module:
        names, rows = _attributes(attributes)
        if len(scores) != 1:
            raise UserError(f"policy.scores: got {', '.join(scores)}; the head gated makes one score of its attributes, takes one name")
        if rows.shape[1] != features:
            raise UserError(f"policy.head.attributes: reads {rows.shape[1]} features, and this model has {features}; takes an export of it")
        for name in (*(penalties or {}), *([] if verbosity is None else [verbosity])):
            if name not in names:
                raise UserError(f"policy.head: no attribute {name!r} in {attributes}; takes {', '.join(names)}")
        adjusted = rows.clone()
        for name, penalty in (penalties or {}).items():
            adjusted[names.index(name)] -= penalty * rows[names.index(verbosity or "")]
        return Gated(adjusted, width=width, temperature=temperature, seed=seed)

    return Head("gated", make)


class Gated(nn.Module):
    """See ``gated``. attributes: ``[k, H]``, as penalties leave them; nothing trains them, and they are read again from their folder."""

    attributes: Tensor

    def __init__(self, attributes: Tensor, *, width: int, temperature: float, seed: int):
        super().__init__()
        count, features = attributes.shape
        self.register_buffer("attributes", attributes)
        self.temperature = temperature
        self.hidden = nn.Parameter(torch.randn(width, features, generator=torch.Generator().manual_seed(seed)) / features**0.5)
        self.gate = nn.Parameter(torch.zeros(count, width))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read."""
        parts = torch.softmax(torch.relu(features @ self.hidden.T) @ self.gate.T / self.temperature, 1)
        return (parts * (features @ self.attributes.T)).sum(1, keepdim=True)

    def code(self) -> tuple[str, ...]:
        """As in ``_head.Plain``."""
        return (
            f'parts = torch.softmax(torch.relu(x @ head["hidden"].T) @ head["gate"].T / {self.temperature!r}, 1)',
            'scores = (parts * (x @ head["attributes"].T)).sum(1, keepdim=True)',
        )


def decorrelating(ratings: Tensor, verbosity: Tensor) -> Tensor:
    """lam ``[k]``: with ``r_i - lam_i r_verbosity`` no attribute is correlated with verbosity, on these outputs.

    ratings: ``[N, k]``. verbosity: ``[N]``.

    Examples:
        >>> longer = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> decorrelating(torch.stack([2 * longer, torch.tensor([1.0, 0.0, 0.0, 1.0])], 1), longer)
        tensor([2., 0.])
    """
    apart = verbosity - verbosity.mean()
    return ((ratings - ratings.mean(0)) * apart[:, None]).sum(0) / (apart**2).sum()


def _attributes(folder: str) -> tuple[list[str], Tensor]:
    """Names and weights ``[k, H]`` of an export. Errors: UserError where it is none."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"policy.head.attributes: no config.json in {folder}; takes the folder of an export (mmalign export)")
    labels = json.loads((path / "config.json").read_text(encoding="utf-8")).get("id2label", {})
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if "score.weight" in tensors.keys():  # noqa: SIM118 (no mapping)
                rows: Tensor = tensors.get_tensor("score.weight").float()
                return [labels[str(number)] for number in range(len(rows))], rows
    raise UserError(f"policy.head.attributes: no score.weight in {folder}; takes an export of a reward model with a linear head")
