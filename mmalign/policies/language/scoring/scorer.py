"""Tables ``[R, T]`` of given completions: batches of rows of like lengths, their hidden states, and the head where cells are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.needs import ACTIVATION, DEAD_END, DEAD_END_BEST, of_set
from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.activations import mean_activations
from mmalign.policies.language.models.fitting import Running
from mmalign.policies.language.models.logits import LOG_PROBS, Head, distribution, numbers_of
from mmalign.policies.language.scoring.heads import HEADS, KINDS, OF_REFERENCE, Positions
from mmalign.types import Need, UserError

Using = Callable[[str], AbstractContextManager[Running]]
"""Puts a named parameter set, or another model, in place, and says how to run what is there."""
WASTE = 1.5  # a batch is split once its filled-up size is so many times what it really holds


@dataclass(frozen=True)
class Scorer:
    """How tables are computed. at_once: positions whose logits are held at a time. heads: see ``heads.py``. never: ids ``[K]`` that
    are left out of every distribution.

    layers: those that compute their activations again in the backward pass, if any; a cache would be written twice, so prompts are
    not shared then.
    """

    fit: Running
    temperature: float
    at_once: int
    heads: Mapping[str, nn.Module]
    device: torch.device
    never: Tensor | None
    layers: Sequence[nn.Module] = ()

    def __call__(
        self, rows: prefixes.Sequences, cells: Tensor, *, numbers: frozenset[Need] = frozenset(), references: Sequence[str] = (),
        using: Using | None = None,
    ) -> dict[Need, Tensor]:  # fmt: skip
        """Tables ``[R, T]`` float64 on the CPU, 0 outside ``cells [R, T]``: ``LOG_PROBS`` and the numbers (``logits.py``, ``heads.py``).

        references: names whose distributions the numbers compare with. using: what puts these names in place.
        """
        masks = [need.kind for need in sorted(numbers) if need.kind in OF_REFERENCE]
        if masks and "ref" not in references:
            raise UserError(f"terms {', '.join(masks)}: are read off the reference; takes a method that needs refs:ref")
        places, tables = list[Tensor](), list[dict[Need, Tensor]]()
        for part in batches(rows):
            wanted = cells[part]
            if bool(wanted.any()):
                at = wanted.nonzero()
                places.append(torch.stack([part[at[:, 0]], at[:, 1]]))
                tables.append(self._of_batch(rows, part, wanted, numbers, references, using))
        empty = torch.zeros(cells.shape, dtype=torch.float64)
        if not tables:
            beside = [DEAD_END_BEST] if DEAD_END in numbers and "start" in references else []
            return dict.fromkeys([LOG_PROBS, *numbers, *beside], empty)
        where = tuple(torch.cat(places, dim=1))
        return {name: empty.index_put(where, torch.cat([table[name].cpu() for table in tables])) for name in tables[0]}

    def _of_batch(
        self, rows: prefixes.Sequences, part: Tensor, cells: Tensor, numbers: frozenset[Need], references: Sequence[str],
        using: Using | None,
    ) -> dict[Need, Tensor]:  # fmt: skip
        """Of some rows ``part [P]``, in one pass: what is said at the N cells that are wanted of them, ``[N]`` each. cells: ``[P, T]``."""
        width = int(cells.any(0).nonzero().max()) + 1
        if rows.inside:  # no picture is cut, whatever is wanted before it
            width = max(width, int(rows.lengths[part].max()))
        sequences = picked(rows, part, width, self.device)
        inside = cells[:, :width].to(self.device)
        tokens = sequences.tokens[inside]
        others = {name: self._reference(name, using, sequences, inside) for name in references} if using else {}
        hidden = self.hidden(sequences)[inside]
        of_heads = {need for need in numbers if need.kind in HEADS}
        of_sets = {need for need in of_heads if need.name}
        manner: dict[str, Any] = {"temperature": self.temperature, "never": self.never}
        manner["allowed"] = None if sequences.allowed is None else sequences.allowed[inside]
        settings = {**manner, "at_once": self.at_once, "others": others}
        table = numbers_of(self.fit.head, hidden, tokens, numbers=numbers - of_heads - {ACTIVATION}, **settings)
        drawing = distribution(*others["start"], **manner) if DEAD_END in of_heads and "start" in others else None
        for name in (need.kind for need in sorted(of_heads - of_sets)):
            states = others["ref"][1] if KINDS[name].of_reference else hidden
            table |= KINDS[name].tables(name, self.heads[name], Positions(states, tokens, drawing))
        if using is not None:
            for name in sorted({need.name for need in of_sets}):
                table |= self._of_set(name, [need.kind for need in sorted(of_sets) if need.name == name], using, sequences, inside)
        if ACTIVATION in numbers and using is not None:
            with using("ref") as fit:
                table[ACTIVATION] = mean_activations(fit, sequences)[inside.to(fit.device)].double()
        return table

    def hidden(self, rows: prefixes.Sequences) -> Tensor:
        """Hidden states ``[R, T, H]``, as ``prefixes.run`` gives them."""
        if not (self.layers and torch.is_grad_enabled()):
            return self.fit.states(rows)
        for layer in self.layers:
            layer.training = True  # of the layer alone: what is in it, dropout too, stays as it is
        try:
            return self.fit.alone().states(rows)
        finally:
            for layer in self.layers:
                layer.training = False

    def _of_set(self, name: str, kinds: Sequence[str], using: Using, rows: prefixes.Sequences, inside: Tensor) -> dict[Need, Tensor]:
        """What heads of these kinds say, ``[N]`` each, where the parameters, theirs among them, are a named set's; without gradient."""
        with torch.no_grad(), using(name) as fit:
            at = Positions(fit.states(rows)[inside.to(fit.device)], rows.tokens[inside], None)
            said = [KINDS[kind].tables(kind, self.heads[kind], at) for kind in kinds]
        return {of_set(need, name): values for table in said for need, values in table.items()}

    def _reference(self, name: str, using: Using, rows: prefixes.Sequences, inside: Tensor) -> tuple[Head, Tensor]:
        """Head and hidden states of the rows under a named parameter set, or another model, without gradient."""

        def head(hidden: Tensor) -> Tensor:
            with torch.no_grad(), using(name) as fit:
                return fit.head(hidden).to(inside.device)

        with torch.no_grad(), using(name) as fit:
            return head, fit.states(rows)[inside.to(fit.device)]


def batches(rows: prefixes.Sequences) -> Iterator[Tensor]:
    """Row numbers of batches in which little is filled up; rows of one prompt stay together where their lengths are alike."""
    sizes = torch.tensor([len(prompt) for prompt in rows.prompts])[rows.which]
    order = sorted(range(len(rows)), key=lambda row: (int(sizes[row]), int(rows.which[row]), int(rows.lengths[row])))
    batch: list[int] = []
    for row in order:
        if batch and _waste(sizes, rows, [*batch, row]) > WASTE:
            yield torch.tensor(batch)
            batch = []
        batch.append(row)
    if batch:
        yield torch.tensor(batch)


def _waste(sizes: Tensor, rows: prefixes.Sequences, batch: Sequence[int]) -> float:
    """How many tokens a batch of a shared prompts runs, for every real one."""
    prompts = {int(rows.which[row]): int(sizes[row]) for row in batch}
    lengths = [int(rows.lengths[row]) for row in batch]
    filled = max(prompts.values()) * len(prompts) + max(lengths) * len(lengths)
    return filled / (sum(prompts.values()) + sum(lengths))


def picked(rows: prefixes.Sequences, part: Tensor, width: int, device: torch.device) -> prefixes.Sequences:
    """Some rows, their first ``width`` tokens, and the prompts that they use."""
    used, which = rows.which[part].unique(return_inverse=True)
    return prefixes.Sequences(
        prompts=[rows.prompts[place].to(device) for place in used.tolist()],
        which=which.to(device),
        tokens=rows.tokens[part, :width].to(device),
        lengths=rows.lengths[part].clamp(max=width).to(device),
        extras=[{name: value.to(device) for name, value in rows.extras[place].items()} for place in used.tolist()] if rows.extras else (),
        read=None if rows.read is None else rows.read[part, :width].to(device),
        allowed=None if rows.allowed is None else rows.allowed[part, :width].to(device),
        inside=[{name: value.to(device) for name, value in rows.inside[row].items()} for row in part.tolist()] if rows.inside else (),
    )
