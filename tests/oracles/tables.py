"""Random tables that every method is tried on, small enough for loops and irregular enough to show a mistake.

A table starts at a leaf (logits, or means of Gaussian steps), as a policy's does, so that a gradient is one through the policy.
Groups have 4, 3, 2, 2 and 1 rows in mixed order; one group is tied, one reward is missing, one row is empty, and lengths differ.
Rows 2k and 2k + 1 are a pair, named in both orders; one is a tie, one says nothing, and two are soft, on either side of a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import (
    ADJOINT_SIZE,
    CHANGED,
    COLLISION,
    DEAD_END,
    DT,
    MASK,
    NOISE,
    OLD,
    PHRASE,
    Q1,
    Q2,
    REWARDS,
    SEGMENT,
    SLOPE,
    STD,
    V1,
    V2,
    VALUE,
    absolute,
    contrast,
    kls,
    of_set,
    refs,
    reverse_kls,
)
from mmalign.types import Feedback, Kind, Need, Steps

GROUP = [7, 2, 7, 5, 2, 9, 7, 5, 2, 7, 4, 4]
ROWS, COLUMNS, SIZE = len(GROUP), 5, 6
TIED, MISSING, EMPTY = 4, 8, 6
BRANCH = [0, 2, 0, 4, 2, 5, 1, 4, 3, 1, 6, 6]  # inside groups
PAIRS = [[0, 1], [3, 2], [4, 5], [7, 6], [9, 8], [10, 11]]
STRENGTH = [1.0, 0.8, 0.3, 1.0, math.nan, 0.5]


EVERYTHING = frozenset(
    {
        OLD,
        refs("ref"),
        refs("previous"),
        refs("before"),
        refs("start"),
        kls("ref"),
        reverse_kls("ref"),
        STD,
        SLOPE,
        DT,
        NOISE,
        CHANGED,
        PHRASE,
    }
)
CONTRASTS = ("ablated", "good", "bad", "mismatched", "blended", "true")
TERMS = (
    "entropy",
    "collision",
    "value",
    "q1",
    "q2",
    "v1",
    "v2",
    "reward_mask",
    "kl_mask",
    "activation",
    "degree",
    "dead_end",
    "drift",
    "adjoint",
)
EVERYTHING |= {SEGMENT, *map(Need, TERMS), *map(contrast, CONTRASTS), kls("previous")}
ABSOLUTE = frozenset(absolute("previous", share) for share in (1.0, -1.0, 0.3, -0.3, 0.0))
EVERYTHING |= ABSOLUTE
CRITICS = frozenset(of_set(need, name) for need in (Q1, Q2, V1, V2) for name in ("", "target"))
READABLE = frozenset({MASK, OLD, refs("ref"), refs("previous"), VALUE, SEGMENT, REWARDS, COLLISION, STD, SLOPE, ADJOINT_SIZE}) | CRITICS
PARTS = ("first", "second", "hardness")
DRAWN = {"ref": [1, 2, 5, 6, 8, 10], "mixture": [2, 4, 7, 9, 11], "half": [1, 6, 7, 8], "greedy": [4, 6, 11]}
"""Rows that a sampler drew: of the empty row, of pairs torn apart and of whole ones."""


@dataclass(frozen=True)
class Table:
    """Everything a method may see, and what is behind it, ``[B, T, D]`` each.

    For transitions the Gaussians' means (``mean, mean_ref, mean_old``) and what was drawn (``x_next``), for bounds what was predicted, and
    its ``target``; ``mean_previous`` of both, under ``previous``.
    """

    kind: Kind
    leaf: Tensor
    log_probs: Tensor
    old: Tensor
    ref: Tensor
    kl: Tensor
    std: Tensor
    dt: Tensor
    slope: Tensor
    adjoint_size: Tensor
    mask: Tensor
    rewards: Tensor
    group: Tensor
    branch: Tensor
    lengths: Tensor
    noise: Tensor
    pairs: Tensor
    strength: Tensor
    event_size: int
    labels: Tensor
    wins: Tensor
    changed: Tensor
    phrase: Tensor
    segment: Tensor
    value: Tensor
    dense: Tensor
    previous: Tensor
    reverse_kl: Tensor
    entropy: Tensor
    collision: Tensor
    reward_mask: Tensor
    kl_mask: Tensor
    activation: Tensor
    judged: Tensor
    q1: Tensor
    q2: Tensor
    v1: Tensor
    v2: Tensor
    said: dict[Need, Tensor]
    degree: Tensor
    dead_end: Tensor
    dead_end_best: Tensor
    drift: Tensor
    adjoint: Tensor
    others: Contrasts
    parts: dict[str, Tensor]
    mean: Tensor | None = None
    mean_ref: Tensor | None = None
    mean_old: Tensor | None = None
    x_next: Tensor | None = None
    mean_previous: Tensor | None = None
    kl_previous: Tensor | None = None
    target: Tensor | None = None

    @property
    def before(self) -> Tensor:
        """The policy of one round earlier than ``previous``."""
        return (self.previous + self.ref.roll(1, 0)).detach() / 2

    def steps(self, needs: frozenset[Need] = EVERYTHING) -> Steps:
        """The Steps of the table, holding what is needed and nothing else. ``others``: name -> (log_probs, ref) of a contrast."""
        references = {"ref": self.ref, "previous": self.previous, "before": self.before}
        facts = {
            name: getattr(self, name) for name in ("std", "slope", "dt", "noise", "changed", "phrase", "segment") if Need(name) in needs
        }
        terms = {name: getattr(self, name) for name in TERMS if Need(name) in needs}
        terms |= {"dead_end_best": self.dead_end_best} if {DEAD_END, refs("start")} <= needs else {}
        for need in ABSOLUTE & needs:
            if self.mean is not None and self.mean_previous is not None and self.target is not None:
                mixed = need.share * self.mean.detach() + (1 - need.share) * self.mean_previous
                facts[str(need)] = (mixed - self.target).abs().mean(-1)
        distances = {"ref": self.kl, **({} if self.kl_previous is None else {"previous": self.kl_previous})}
        contrasts = {
            name: Steps(self.others[name][0], self.mask, refs={"ref": self.others[name][1]}, event_size=self.event_size, kind=self.kind)
            for name in CONTRASTS
            if contrast(name) in needs
        }
        return Steps(
            self.log_probs,
            self.mask,
            self.old if OLD in needs else None,
            {name: table for name, table in references.items() if refs(name) in needs},
            {name: table for name, table in distances.items() if kls(name) in needs},
            facts,
            self.event_size,
            self.kind,
            {"ref": self.reverse_kl} if reverse_kls("ref") in needs else {},
            terms,
            contrasts,
        )

    def feedback(self, reads: frozenset[Need] = READABLE) -> Feedback:
        tables = {
            MASK: self.mask, OLD: self.old, refs("ref"): self.ref, refs("previous"): self.previous, VALUE: self.judged,
            SEGMENT: self.segment, REWARDS: self.dense, COLLISION: self.collision.detach(), STD: self.std, SLOPE: self.slope,
            ADJOINT_SIZE: self.adjoint_size, **self.said,
        }  # fmt: skip
        return Feedback(
            self.rewards, self.group, parts=self.parts, labels=self.labels, pairs=self.pairs, strength=self.strength,
            lengths=self.lengths, wins=self.wins, tables={need: table for need, table in tables.items() if need in reads},
            drawn={name: torch.isin(torch.arange(ROWS), torch.tensor(rows)) for name, rows in DRAWN.items()}, branch=self.branch,
        )  # fmt: skip


class Contrasts(dict[str, tuple[Tensor, Tensor]]):
    """name -> (log_probs, ref) of the same rows under another condition, made when they are first asked for: few methods do."""

    def __init__(self, make: Callable[[str], tuple[Tensor, Tensor]]):
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> tuple[Tensor, Tensor]:
        self[name] = self.make(name)
        return self[name]


@cache
def _drawn(seed: int) -> dict[str, Any]:
    """All of a table that no parameter changes: drawn once, as a table is made ten thousand times. Who reads it takes copies."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    current, sampled, reference = (normal(ROWS, COLUMNS, SIZE) * 0.4 for _ in range(3))
    std, dt = 0.5 + torch.rand(ROWS, COLUMNS, generator=rng).double(), -0.05 - 0.2 * torch.rand(ROWS, COLUMNS, generator=rng).double()
    token = torch.randint(SIZE, (ROWS, COLUMNS, 1), generator=rng)
    noise, rewards = normal(ROWS, COLUMNS, SIZE), normal(ROWS)
    lengths = torch.tensor([5, 3, 4, 5, 2, 5, 0, 1, 5, 4, 3, 5])
    mask = torch.arange(COLUMNS) < lengths[:, None]
    mask[0, 2] = False  # a hole, as a tool's answer leaves one
    group = torch.tensor(GROUP)
    rewards[group == TIED], rewards[MISSING] = 0.1, math.nan
    common: dict[str, Any] = {
        "std": std,
        "dt": dt,
        "slope": 0.1 + std.flip(0) ** 2,
        "adjoint_size": 0.5 + std.roll(1, 0) ** 3,
        "branch": torch.tensor(BRANCH),
        "mask": mask,
        "rewards": rewards,
        "group": group,
        "lengths": lengths,
    }
    level = torch.rand(ROWS // 2, COLUMNS, generator=rng).double().repeat_interleave(2, 0)
    common |= {"noise": level, "pairs": torch.tensor(PAIRS), "strength": torch.tensor(STRENGTH).double()}
    common |= _judgements(normal, group, mask)
    shifted = {name: (normal(ROWS, COLUMNS, SIZE) * 0.3, normal(ROWS, COLUMNS, SIZE) * 0.3) for name in CONTRASTS}
    before = reference + normal(ROWS, COLUMNS, SIZE) * 0.2
    common["parts"] = _parts(normal, group)
    common["vectors"] = normal(ROWS, COLUMNS, SIZE)
    parameters = {"current": current, "sampled": sampled, "reference": reference, "before": before}
    return {"common": common, "shifted": shifted, "token": token, "noise": noise, **parameters}


def table(kind: Kind, seed: int = 0, leaf: Tensor | None = None) -> Table:
    """The table of a seed; ``leaf`` replaces the current parameters, for gradients by hand."""
    drawn: dict[str, Any] = _copied(_drawn(seed))
    common, shifted, token, noise = (drawn[name] for name in ("common", "shifted", "token", "noise"))
    sampled, reference, before = (drawn[name] for name in ("sampled", "reference", "before"))
    leaf = drawn["current"].requires_grad_() if leaf is None else leaf
    std = common["std"]
    common |= {"value": leaf[..., 0] / 2, "reward_mask": leaf[..., 1].relu(), "kl_mask": leaf[..., 2].relu()}
    common["activation"] = reference.mean(-1)
    common["degree"] = -leaf[..., 3].exp()
    common |= {"dead_end": -leaf[..., 4].sigmoid(), "dead_end_best": -leaf.sigmoid().amin(-1)}
    common["adjoint"] = (common.pop("vectors") * (leaf - sampled)).sum(-1)
    critics = {"q1": leaf[..., 5] / 2, "q2": leaf[..., 1] / 3, "v1": leaf[..., 2] / 2, "v2": leaf[..., 4] / 3}
    shares = {"": 1.0, "target": 0.6}  # of what two critics said when the rows were sampled, and of what their copies did
    common |= critics
    common["said"] = {
        Need(kind, name): share * value.detach() + common["dense"].roll(len(kind + name), 0) / 4
        for kind, value in critics.items() for name, share in shares.items()
    }  # fmt: skip
    common["judged"] = common["value"].detach() + common["dense"] / 4  # what the critic said when the rows were sampled

    def contrasts(row: Callable[[Tensor], Tensor]) -> Contrasts:
        return Contrasts(lambda name: (row(leaf * 0.7 + shifted[name][0]), row(reference + shifted[name][1])))

    if kind == "token":
        log_probs, old, ref, previous = (parameters.log_softmax(-1) for parameters in (leaf, sampled, reference, before))
        common["kl_previous"] = (log_probs.exp() * (log_probs - previous)).sum(-1)
        kl, reverse = (log_probs.exp() * (log_probs - ref)).sum(-1), (ref.exp() * (ref - log_probs)).sum(-1)
        entropy, collision = -(log_probs.exp() * log_probs).sum(-1), (log_probs.exp() ** 2).sum(-1).log()

        def pick(probabilities: Tensor) -> Tensor:
            return probabilities.gather(-1, token).squeeze(-1)

        common["others"] = contrasts(lambda logits: pick(logits.log_softmax(-1)))
        common |= {"previous": pick(previous), "reverse_kl": reverse, "entropy": entropy, "collision": collision}
        common["drift"] = (old.exp() * (old - log_probs)).sum(-1)
        return Table(kind, leaf, pick(log_probs), pick(old), pick(ref), kl, event_size=1, **common)  # type: ignore[arg-type]

    common |= {"reverse_kl": torch.zeros_like(std), "entropy": torch.zeros_like(std), "collision": torch.zeros_like(std)}
    common["drift"] = ((leaf - sampled) ** 2).sum(-1) / (2 * std**2)
    if kind == "bound":
        bound: Callable[[Tensor], Tensor] = lambda predicted: -0.5 * ((predicted - noise) ** 2).sum(-1)  # noqa: E731
        common["others"] = contrasts(bound)
        common["previous"] = bound(before)
        errors = [bound(predicted) for predicted in (leaf, sampled, reference)]
        common |= {"mean_previous": before, "kl_previous": ((leaf - before) ** 2).sum(-1) / 2}
        distance = ((leaf - reference) ** 2).sum(-1) / 2
        return Table(kind, leaf, *errors, distance, event_size=SIZE, mean=leaf, mean_ref=reference, target=noise, **common)  # type: ignore[arg-type]

    if kind == "score":  # of a reward model: as many dimensions as there are columns, with no reference
        common |= {"previous": before[..., 0], "others": contrasts(lambda parameters: parameters[..., 0])}
        scores = (parameters[..., 0] * 3 for parameters in (leaf, sampled, reference))
        return Table(kind, leaf, *scores, common["drift"], event_size=1, **common)  # type: ignore[arg-type]

    x_next = sampled + std[..., None] * noise
    constant = SIZE * (std.log() + 0.5 * math.log(2 * math.pi))
    density: Callable[[Tensor], Tensor] = lambda mean: -((x_next - mean) ** 2).sum(-1) / (2 * std**2) - constant  # noqa: E731
    common["others"] = contrasts(density)
    common["previous"] = density(before)
    densities = [density(mean) for mean in (leaf, sampled, reference)]
    kl = ((leaf - reference) ** 2).sum(-1) / (2 * std**2)
    common |= {"mean": leaf, "mean_ref": reference, "mean_old": sampled, "x_next": x_next}
    common |= {"mean_previous": before, "kl_previous": ((leaf - before) ** 2).sum(-1) / (2 * std**2)}
    return Table(kind, leaf, *densities, kl, event_size=SIZE, **common)  # type: ignore[arg-type]


def _copied(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.clone()
    if isinstance(values, dict):
        return {name: _copied(value) for name, value in values.items()}
    return tuple(map(_copied, values))


def _judgements(normal: Callable[..., Tensor], group: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Thumbs (one soft, one missing), win probabilities in groups (one missing), and what is known of single steps."""
    labels = (normal(ROWS) > 0).double()
    labels[3], labels[MISSING] = 0.3, math.nan
    same = (group[:, None] == group[None, :]).fill_diagonal_(False)
    wins = torch.where(same, normal(ROWS, ROWS).sigmoid(), math.nan)
    wins[0, 2] = math.nan
    number = torch.arange(COLUMNS).expand(ROWS, COLUMNS)
    changed = (normal(ROWS, COLUMNS) > 0).double()
    return {
        "labels": labels,
        "wins": wins,
        "changed": changed,
        "phrase": torch.where(changed > 0, 1 + number // 2, 0).double(),
        "segment": (1 + number // 2).double() * mask,
        "dense": normal(ROWS, COLUMNS) * mask,
    }


def _parts(normal: Callable[..., Tensor], group: Tensor) -> dict[str, Tensor]:
    """Two rewards apart, one tied where all are, and how hard a row is (0..1)."""
    parts = {name: normal(ROWS) for name in PARTS}
    parts["hardness"] = parts["hardness"].sigmoid()
    parts["first"][group == TIED] = -0.7
    for values in parts.values():
        values[MISSING] = math.nan
    return parts
