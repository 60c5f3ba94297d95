"""What rewards on images share: a score with what a caller may want to know of it, and checks before anything expensive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.types import Level, UserError


@dataclass(frozen=True)
class Scorer:
    """A reward with its facts; called like any other, ``(outputs, prompts, **columns) -> [B]``.

    differentiable: whether a gradient arrives at the outputs; guidance by gradients refuses a reward that says no.
    low, high: no score is outside; None: no bound. at: told the number of the training step before it, by a reward that changes as
    training goes. reads: the columns of the prompts that it needs; a row in which one of them is None has no score (NaN).
    of_latents: it scores what outputs are decoded from, and is handed that in their place. latents: what it would say of those, for
    ``on_latents``: ``(latents, prompts, level, columns)``, level None for clean ones; None: it knows outputs alone. state: what it keeps
    from call to call, with ``dump`` and ``load``, for checkpoints.
    """

    name: str
    score: Callable[..., Any]
    differentiable: bool = False
    low: float | None = None
    high: float | None = None
    at: Callable[[int], None] | None = None
    reads: frozenset[str] = frozenset()
    of_latents: bool = False
    latents: Callable[[Tensor, list[Any], Level | None, Mapping[str, Any]], Any] | None = None
    state: Any = None

    def __call__(self, outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        rows = _complete(self, len(prompts), columns)
        if len(rows) == len(prompts):
            return self.score(outputs, prompts, **columns)
        if not rows:
            return torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        scores = self.score(*taken(rows, outputs, prompts), **{name: [values[row] for row in rows] for name, values in columns.items()})
        if isinstance(scores, Mapping):
            return {name: _spread(values, rows, len(prompts)) for name, values in scores.items()}
        return _spread(scores, rows, len(prompts))


@dataclass(frozen=True)
class Comparer:
    """An oracle of pairs with its facts; called like any other, ``(outputs, prompts, group, **columns) -> [B, B]``.

    reads: the columns of the prompts that it needs; a row in which one of them is None is compared with none (NaN).
    """

    name: str
    compare: Callable[..., Tensor]
    reads: frozenset[str] = frozenset()

    def __call__(self, outputs: Any, prompts: Any, group: Tensor, **columns: Any) -> Tensor:
        rows = _complete(self, len(prompts), columns)
        if len(rows) == len(prompts):
            return self.compare(outputs, prompts, group, **columns)
        wins = torch.full((len(prompts), len(prompts)), torch.nan, dtype=torch.float64)
        if rows:
            place = torch.tensor(rows)
            of_rows = {name: [values[row] for row in rows] for name, values in columns.items()}
            some = self.compare(*taken(rows, outputs, prompts), group[place.to(group.device)], **of_rows)
            wins[place[:, None], place[None, :]] = some.detach().double().cpu()
        return wins


def _complete(owner: Scorer | Comparer, count: int, columns: Mapping[str, Any]) -> list[int]:
    """The rows that have all of the columns that are read."""
    absent = {row for name in owner.reads for row, value in enumerate(column_of(owner.name, name, columns)) if value is None}
    return [row for row in range(count) if row not in absent]


def taken(rows: list[int], outputs: Any, prompts: list[Any]) -> tuple[Any, list[Any]]:
    """(outputs, prompts) of some rows."""
    return outputs[rows] if isinstance(outputs, Tensor) else [outputs[row] for row in rows], [prompts[row] for row in rows]


def column_of(owner: str, name: str, columns: Mapping[str, Any]) -> Sequence[Any]:
    """A column of the prompts. Errors: UserError in one line that names those there are."""
    if name not in columns:
        there = (
            f"they have {', '.join(sorted(columns))}"
            if columns
            else "they have none (a file's columns go along: prompts: {use: prompts, path: ...})"
        )
        raise UserError(f"{owner}: reads the column {name!r} of the prompts; {there}")
    values: Sequence[Any] = columns[name]
    return values


def _spread(values: Any, rows: list[int], count: int) -> Any:
    """Scores of some rows as those of all: NaN, or None for scores of parts, where there is none."""
    if isinstance(values, Tensor):
        return values.new_full((count,), torch.nan).index_copy(0, torch.tensor(rows, device=values.device), values)
    known = dict(zip(rows, values, strict=True))
    return [known.get(row) for row in range(count)]


def on_images(
    name: str, score: Callable[[Tensor, list[str]], Tensor], *, differentiable: bool, rows_at_once: int,
    low: float | None = None, high: float | None = None,
) -> Scorer:  # fmt: skip
    """A scorer of images from ``score``: (``[n, 3, H, W]`` float32 in 0..1, n prompts) -> ``[n]``, asked for ``rows_at_once`` rows each.

    Grey images are repeated over three channels. An image with a number that is not finite has no score: NaN.
    Errors: UserError, before ``score`` is asked, for outputs that are not such images.
    """
    if rows_at_once < 1:
        raise UserError(f"{name}.rows_at_once: got {rows_at_once}, takes 1 or more")

    def reward(outputs: Any, prompts: list[str], **columns: Any) -> Tensor:
        images, usable = _images(name, outputs, prompts)
        parts = [
            score(images[start : start + rows_at_once], prompts[start : start + rows_at_once])
            for start in range(0, len(prompts), rows_at_once)
        ]
        scores = torch.cat(parts).to(images.device)
        return torch.where(usable, scores, torch.full_like(scores, float("nan")))

    return Scorer(name, reward, differentiable=differentiable, low=low, high=high)


def _images(name: str, outputs: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Images ``[B, 3, H, W]`` float32, those that are not finite black, and which rows are finite ``[B]``."""
    if isinstance(outputs, Tensor) and outputs.ndim == 5:
        raise UserError(f"{name}: got videos {list(outputs.shape)}, takes images; {{use: frames, of: {{use: {name}}}}} scores their frames")
    if not isinstance(outputs, Tensor) or outputs.ndim != 4 or outputs.shape[1] not in (1, 3) or not outputs.is_floating_point():
        got = f"{outputs.dtype} {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(f"{name}: got outputs {got}, takes images [batch, 3, height, width] of floats in 0..1")
    if len(outputs) != len(prompts) or not prompts:
        raise UserError(f"{name}: got {len(outputs)} images for {len(prompts)} prompts, takes one for each of at least one")
    images = outputs.float().expand(-1, 3, -1, -1)
    usable = images.flatten(1).isfinite().all(1)
    images = torch.where(usable[:, None, None, None], images, 0.0)
    low, high = float(images.detach().min()), float(images.detach().max())
    if low < -1e-3 or high > 1 + 1e-3:  # a little rounding, not another range
        raise UserError(f"{name}: got numbers from {low:.4g} to {high:.4g}, takes images in 0..1")
    return images, usable
