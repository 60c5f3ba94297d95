"""Labels of one task for the pairs of another, of which nobody has said anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.data._reading.around import inside
from mmalign.data._transport import gromov_wasserstein
from mmalign.data.pairs import Listed, listed
from mmalign.records import Pair, Record, Records, once, read
from mmalign.types import UserError

Features = Mapping[str, Callable[..., Any]]


def transferred(
    of: Records | Sequence[Record], *, labelled: Records | Sequence[Record], features: Features, labelled_features: Features | None = None,
    look: Count = 256,
) -> Listed:  # fmt: skip
    """Pairs of a task without labels, with those that a task with labels gives them: preferences across tasks by optimal transport.

    The outputs of both tasks are brought into correspondence T by the distances inside of each alone (Gromov and Wasserstein), so that
    their features need have nothing in common; with ``y_ij`` how probably output i is better than j, of the labelled pairs, in both
    orders::

        y'_ab = sum_ij y_ij T_ia T_jb / sum_ij T_ia T_jb

    Such labels are soft, and often wrong: ``bradley_terry_gaussian`` learns from them how far a reward is to be believed.

    Args:
        of: pairs of the task that has no labels; labels that they have are not looked at.
        labelled: pairs of the other one. features: name -> reward, what outputs are told apart by; each is brought to mean 0 and variance
        1.
        labelled_features: the same of the other task; ``features`` by default.
        look: pairs of each task that are taken, in the order of seed 0. Costs grow with its third power.

    Paper: PEARL: Zero-shot Cross-task Preference Alignment and Robust Reward Learning for Robotic Manipulation, ICML 2024 (its abstract
    says what is weighted by what; that both orders count, and the sum below, are as recalled).

    Errors: UserError for records that are no pairs, a task without a label, features that are all alike, and an output without a feature.
    """
    if not features:
        raise UserError("records.features: got none, takes at least one {name: reward}")
    source = [pair for pair in _pairs(labelled, look, "labelled") if pair.strength == pair.strength]
    if not source:
        raise UserError("records.labelled: got no pair with a label, takes pairs that somebody compared")
    target = _pairs(of, look, "of")
    plan = gromov_wasserstein(_distances(source, labelled_features or features, "labelled"), _distances(target, features, "of"))
    strength = torch.tensor([pair.strength for pair in source], dtype=torch.float64)
    labels = carried(plan, strength)
    return listed([pair._replace(strength=label, scores=(float("nan"),) * 2) for pair, label in zip(target, labels.tolist(), strict=True)])


def carried(plan: Tensor, strength: Tensor) -> Tensor:
    """``[P']``: ``y'`` of pairs (rows 2a and 2a + 1 of the plan's columns), of those of pairs (its rows); plan ``[2 P, 2 P']``."""
    first, second = plan[0::2], plan[1::2]  # of the source's pairs
    as_said = first[:, 0::2] * second[:, 1::2]
    turned = second[:, 0::2] * first[:, 1::2]
    whole = (as_said + turned).sum(0)
    said = (strength[:, None] * as_said + (1 - strength[:, None]) * turned).sum(0)
    return torch.where(whole > 0, said / whole.clamp(min=1e-300), 0.5).clamp(0, 1)


def _pairs(of: Records | Sequence[Record], look: int, key: str) -> list[Pair]:
    pairs = list(once(islice(inside(of).stream(seed=0), look))) if not isinstance(of, Sequence) else list(of)[:look]
    if odd := next((type(pair).__name__ for pair in pairs if not isinstance(pair, Pair)), None):
        raise UserError(f"records.{key}: got a {odd}, takes pairs")
    return [read(pair) for pair in pairs]


def _distances(pairs: Sequence[Pair], features: Features, key: str) -> Tensor:
    """``[2 P, 2 P]`` of the outputs of pairs, by their features, with a mean of 1."""
    prompts, outputs = [pair.prompt for pair in pairs for _ in range(2)], [one for pair in pairs for one in (pair.first, pair.second)]
    given = torch.stack(outputs) if isinstance(outputs[0], Tensor) else outputs
    columns = []
    for name, reward in features.items():
        values = torch.as_tensor(reward(given, prompts)).double().cpu()
        if values.shape != (len(prompts),) or bool(values.isnan().any()):
            raise UserError(f"records.{key}: {name} has no number for one of its outputs; takes features of every output")
        columns.append((values - values.mean()) / values.std().clamp(min=1e-12))
    table = torch.stack(columns, 1)
    apart = torch.cdist(table, table)
    if not float(apart.max()) > 1e-6:
        raise UserError(f"records.{key}: all outputs are alike by {', '.join(features)}; takes features that tell them apart")
    return apart / apart.mean()
