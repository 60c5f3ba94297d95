"""Linear heads on a language model's hidden states: what methods ask of a step besides its probability, trained and kept with the rest.

``value``: what a critic expects; it starts at 0. ``q1``, ``q2``, ``v1``, ``v2``: what two critics expect behind and
before a turn; they start apart, close to 0. ``reward_mask`` and ``kl_mask`` (SparsePO): ``relu(W h + b)`` on the hidden states of the
reference, from 1 on, so that training starts as TDPO's. ``degree``: the log-probability of how much of an answer was taken out of it.
``dead_end``: ``-sigmoid(W h + b)`` for each word, minus how surely a bad end follows it; close to 0 at first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.needs import DEAD_END_BEST, DEGREE
from mmalign.policies.language.models.prefixes import Sequences
from mmalign.policies.parameters import ParameterSets
from mmalign.types import Need, UserError

HeadName = Literal["value", "q1", "q2", "v1", "v2", "degree", "dead_end", "reward_mask", "kl_mask"]
APART = 0.1
"""How far the critics' first weights are from 0, in units of one over the square root of the width: two that start alike stay alike."""
SAFE = -4.0
"""The bias of ``dead_end`` at the start: a bad end is taken to follow a word in one case of 56."""
TRIED = 4
"""The best word of a model is the best of so many that it draws: what it hardly ever says was hardly learned from, and is not believed."""
DEGREES = 4
"""Degrees are 0, 1, ... of so many: that part of an answer's live tokens is taken out, those that surprise the reference most first."""


class Positions(NamedTuple):
    """N positions that a head is read at. hidden: ``[N, H]``, the states there. tokens: ``[N]``, the words that stand there.

    drawing: log-probabilities ``[N, V]`` of the model at the start; None where it is not known.
    """

    hidden: Tensor
    tokens: Tensor
    drawing: Tensor | None


def number(name: str, head: nn.Module, at: Positions) -> dict[Need, Tensor]:
    """What the head says, as it is."""
    return {Need(name): head(at.hidden.float()).double().squeeze(-1)}


def positive(name: str, head: nn.Module, at: Positions) -> dict[Need, Tensor]:
    """What the head says, or 0 where that is less."""
    return {Need(name): head(at.hidden.float()).double().squeeze(-1).relu()}


def choices(name: str, head: nn.Module, at: Positions) -> dict[Need, Tensor]:
    """Log-probabilities of the head's outputs, a table for each, named by its number."""
    columns = head(at.hidden.float()).double().log_softmax(-1).unbind(-1)
    return {Need(name, str(place)): column for place, column in enumerate(columns)}


def dead_ends(name: str, head: nn.Module, at: Positions) -> dict[Need, Tensor]:
    """Of the word that stands there; and the best of some words that are drawn, where ``drawing`` is known."""
    each = of_dead_ends(head, at.hidden).double()
    best = {} if at.drawing is None else {DEAD_END_BEST: best_of_draws(each, at.drawing.double(), TRIED)}
    return {Need(name): each.gather(1, at.tokens[:, None])[:, 0]} | best


class Kind(NamedTuple):
    """What a head of one name is. tables: (name, head, positions) -> ``[N]`` float64 each. outputs: how many; None: one for each word.

    bias: at the start. seed: of its first weights, which are ``APART`` from 0; None: they are 0. of_reference: whether it is read off the
    reference's hidden states.
    """

    tables: Callable[[str, nn.Module, Positions], dict[Need, Tensor]] = number
    outputs: int | None = 1
    bias: float = 0.0
    seed: int | None = None
    of_reference: bool = False


KINDS: dict[str, Kind] = {
    "value": Kind(),
    "q1": Kind(seed=0),
    "q2": Kind(seed=1),
    "v1": Kind(seed=2),
    "v2": Kind(seed=3),
    "degree": Kind(choices, outputs=DEGREES),
    "dead_end": Kind(dead_ends, outputs=None, bias=SAFE),
    "reward_mask": Kind(positive, bias=1.0, of_reference=True),
    "kl_mask": Kind(positive, bias=1.0, of_reference=True),
}
HEADS = frozenset(KINDS)
MASKS = frozenset(name for name, kind in KINDS.items() if kind.of_reference)
OF_REFERENCE = MASKS | {"activation"}
"""What is read off the reference's hidden states, by a head or as it is."""


def add_heads(sets: ParameterSets, model: Any, names: Sequence[str]) -> dict[str, nn.Module]:
    """A head for each name, ``NAME.weight`` and ``NAME.bias`` among the trained parameters and in the sets. Errors: UserError."""
    if isinstance(names, str) or not set(names) <= HEADS:
        raise UserError(f"policy.heads: got {names!r}, takes a list of {', '.join(sorted(HEADS))}")
    width, device = model.config.get_text_config().hidden_size, next(model.parameters()).device
    heads: dict[str, nn.Module] = {}
    for name in names:
        kind = KINDS[name]
        outputs = kind.outputs or model.get_output_embeddings().weight.shape[0]
        heads[name] = layer = nn.Linear(width, outputs, device=device)
        nn.init.zeros_(layer.weight)
        if kind.seed is not None:
            rng = torch.Generator().manual_seed(kind.seed)
            layer.weight.data.copy_(APART * width**-0.5 * torch.randn(layer.weight.shape, generator=rng))
        nn.init.constant_(layer.bias, kind.bias)
    sets.add(heads)
    return heads


def of_dead_ends(head: nn.Module, hidden: Tensor) -> Tensor:
    """``[N, words]`` in -1..0, of hidden states ``[N, H]``: minus how surely a bad end follows each word."""
    return -head(hidden.float()).sigmoid()  # type: ignore[no-any-return]


def best_of_draws(values: Tensor, log_probs: Tensor, count: int) -> Tensor:
    """``[N]``: the expected maximum of ``values [N, V]`` over ``count`` draws; of one draw the mean, of ever more the maximum.

    With the values in ascending order and F the distribution's sums up to each: ``sum_i v_i (F_i^count - F_(i-1)^count)``. As a backup of
    Q-learning: Ghasemipour et al., EMaQ, arXiv 2007.11091 (as recalled).
    """
    order = values.argsort(1)
    below = log_probs.gather(1, order).exp().cumsum(1).clamp(max=1.0) ** count
    return (values.gather(1, order) * below.diff(dim=1, prepend=below.new_zeros(len(below), 1))).sum(1)


def degrees(
    score: Callable[..., dict[Need, Tensor]], rows: Sequences, cells: Tensor, likely: Tensor, *, which: Tensor | None = None
) -> Tensor:
    """Log-probability of the right degree, at each row's last live cell and 0 elsewhere, ``[R, T]``, differentiable.

    Of every row a copy is read from which tokens are missing, and its last live token's hidden state has to tell how many. score: as
    ``scoring.Scorer``. cells: ``[R, T]`` bool, live. likely: ``[R, T]``, the reference's log-probabilities; the least likely go first.
    which: ``[R]``, the degree of each row; by default it follows from the row's own tokens, so that it is the same in every batch.
    """
    live_tokens = torch.where(cells, rows.tokens, 0)
    kind = live_tokens.sum(1) % DEGREES if which is None else which
    last = cells & (cells.flip(1).cumsum(1).flip(1) == 1)
    open_to = cells & ~last  # what ends a row stays
    order = torch.where(open_to, likely, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    dropped = open_to & (order < (kind * open_to.sum(1) // DEGREES).unsqueeze(1))
    inside = torch.arange(cells.shape[1]) < rows.lengths.unsqueeze(1)
    remaining = inside & ~dropped
    places = (~remaining).long().argsort(dim=1, stable=True)
    short = replace(rows, tokens=rows.tokens.gather(1, places), lengths=remaining.sum(1))
    numbers = score(short, last.gather(1, places), numbers=frozenset({DEGREE}))
    tables = [numbers[need].sum(1) for need in sorted(numbers) if need.kind == "degree"]
    right = torch.stack(tables, 1).gather(1, kind.unsqueeze(1))
    return torch.where(last, right, 0.0)
