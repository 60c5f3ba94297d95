"""A model's behaviour changed by hand: rows of its weights moved along a probe that tells good answers from bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.arguments.calls import described, node_of
from mmalign.arguments.ranges import Count, Finite, Fraction
from mmalign.commands._own_code import own_code
from mmalign.commands._searching import Objective, log_of, searched
from mmalign.commands.export import base_node, written
from mmalign.commands.merge import page
from mmalign.data.pairs import listed
from mmalign.merges.settings import Search
from mmalign.policies.adapters import Form, refuse_taken
from mmalign.policies.exports import ingredients
from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.language.scoring.last_states import mean_states
from mmalign.policies.transformers import TransformersPolicy
from mmalign.records import Pair, Record, Records, once
from mmalign.types import UserError, contents

__all__ = ["shift"]

ALIKE = 1e-9
"""Weights of a probe up to here, in standard deviations of the states, are what rounding leaves of answers with the same ones."""


class Probe(NamedTuple):
    """direction: ``[H]`` of length 1, from bad answers to good ones. right: the share of answers on their own side of it."""

    direction: Tensor
    right: float


def shift(  # what a command may be told
    policy: TransformersPolicy,
    records: Records | Sequence[Record],
    *,
    out: Path,
    strength: Finite = 0.5,
    rows: Fraction = 0.1,
    layers: str = "gate_proj",
    count: Count = 256,
    search: Search | None = None,
    prompt: str = "",
) -> Path:
    """Writes a model of which some rows of weights have been moved along a probe; nothing is trained; returns the folder.

    The probe p is the direction, of length 1, of a logistic regression of good against bad answers on the mean of the last layer's states
    at an answer's tokens. Of every layer of that name the rows with the largest ``|cos(W_i, p)|`` are moved::

        W_i <- W_i + strength |W_i| p

    Args:
        policy: a language model without ``lora``.
        records: pairs: the better answers are good, the worse bad.
        out: the folder, which appears whole or not at all.
        strength: how far, in lengths of the row; below 0 away from what is good. With ``search`` where it begins, of each layer.
        rows: of each layer, the share that is moved; one at least.
        layers: how the names of linear layers end that read the residual stream: of an MLP ``gate_proj`` (Llama, Qwen, Gemma), ``up_proj``,
            ``fc1``.
        count: pairs that the probe is fitted to.
        search: finds a strength for each layer by rewards, at no loss of what is ``kept`` (CMA-ES, as for merges).
        prompt: of the one call by which what was written is compared with what was meant.

    Paper: Model Surgery: Modulating LLM's Behavior Via Simple Parameter Editing, arXiv 2407.08770 (*recalled*: a linear probe of a
    behaviour, the rows of gate projections that go with it, a shift along it).

    Deviations: the strength is in lengths of a row, so that one number fits all layers, and may be searched; the probe's sign is that of
    what is good, whatever the behaviour is called.

    Errors: UserError for what is no language model, one with LoRA, records that are no pairs, a name of no layer, a layer of another width,
    and a probe that tells nothing apart.
    """
    refuse_taken(out)
    node = base_node(described().get("policy") or node_of(policy))
    if not isinstance(policy, TransformersPolicy) or node is None:
        raise UserError(f"policy: got a {type(policy).__name__}, takes a language model")
    if policy.sets.scales:
        raise UserError("policy.lora: got an adapter, and rows of the whole model are moved; takes none")
    named = _layers(policy, layers)
    base = ingredients.base_of(policy)
    probe = fitted_probe(policy, records, count)
    moves = {name: shifted_rows(weight.detach(), probe.direction, rows) for name, weight in named.items()}

    @torch.no_grad()
    def become(strengths: Sequence[float]) -> None:
        for (name, weight), one in zip(named.items(), strengths, strict=True):
            weight.copy_((base.whole[name].double() + one * moves[name]).to(weight))

    strengths, found = [float(strength)] * len(named), None
    if search is not None:
        identity = {"base": base.digest, "probe": probe.direction.tolist(), "rows": rows, "layers": layers}
        found = searched(Objective(policy, search, become), strengths, log=log_of(out), identity=identity)
        strengths = list(found.best)
    become(strengths)
    code = own_code(node, policy.model)
    moved = ", ".join(f"{one:.3g}" for one in strengths)

    def card(forms: list[Form]) -> str:
        how = f"{rows:.0%} of the rows of {len(named)} layers `{layers}` moved along a probe by {moved}"
        how += f" (right of {probe.right:.0%} of answers)"
        return page(out.name, node, forms, code, how=how, parts=[("base", "the policy", base)], found=found)

    asked = prompt or (str(next(iter(contents(search.prompts)), "")) if search is not None else "")
    written(policy, out, node, prompt=asked, card=card, beside=[*code.files, *([found.log] if found else [])])
    if found is not None:
        found.forget()
    return out


def shifted_rows(weight: Tensor, direction: Tensor, share: float) -> Tensor:
    """``|W_i| p`` in the rows that are moved by a strength of 1, 0 in the others; ``[out, in]`` float64 on the CPU.

    weight: ``[out, in]``. direction: ``[in]``, p, of length 1. share: of rows that are moved.

    Examples:
        >>> shifted_rows(torch.tensor([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]]), torch.tensor([1.0, 0.0]), 0.4).tolist()
        [[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]]
    """
    own, p = weight.double().cpu(), direction.double().cpu()
    lengths = own.norm(dim=1)
    cosines = ((own @ p) / lengths.clamp(min=1e-300)).abs()
    moved = torch.zeros(len(own), dtype=torch.bool)
    moved[cosines.topk(max(1, int(share * len(own)))).indices] = True
    return torch.where(moved[:, None], lengths[:, None] * p, 0.0)


def fitted_probe(policy: TransformersPolicy, records: Records | Sequence[Record], count: int) -> Probe:
    """What tells better answers of pairs from worse ones in a model's states; see ``shift``. Errors: UserError."""
    prompts, answers = list[Any](), list[str]()
    for pair in islice(_pairs(records), count):
        prompts += [pair.prompt] * 2
        answers += [pair.first, pair.second] if pair.strength > 0.5 else [pair.second, pair.first]
    if not answers:
        raise UserError("records: no pair says which answer is better; takes some that do")
    states = list[Tensor]()
    for places in torch.arange(len(answers)).split(policy.rows_at_once):
        some = [answers[place] for place in places.tolist()]
        rollout = policy.encode([prompts[place] for place in places.tolist()], some, torch.arange(len(some)), torch.Generator())
        states.append(mean_states(policy.scorer, sequences(rollout.held, torch.arange(len(some)))).cpu())
    table, labels = torch.cat(states), torch.tensor([1.0, 0.0]).repeat(len(answers) // 2).double()
    direction = _regressed(table, labels)
    if not float((direction * table.std(0)).norm()) > ALIKE:
        raise UserError("records: good and bad answers have the same states; takes pairs whose answers differ")
    side = table @ direction
    right = float(((side > side.mean()).double() == labels).double().mean())
    return Probe(direction / direction.norm(), right)


def _regressed(table: Tensor, labels: Tensor, ridge: float = 1e-2) -> Tensor:
    """The weights of a logistic regression with a ridge, in the units of the table: Newton's steps on what is brought to variance 1."""
    scale = table.std(0).clamp(min=1e-12)
    x = torch.cat([(table - table.mean(0)) / scale, torch.ones(len(table), 1, dtype=torch.float64)], dim=1)
    w, penalty = torch.zeros(x.shape[1], dtype=torch.float64), ridge * torch.eye(x.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 1e-9
    for _ in range(30):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (p - labels) / len(x) + penalty @ w
        curve = (x * (p * (1 - p))[:, None]).T @ x / len(x) + penalty
        w = w - torch.linalg.solve(curve, slope)
    return w[:-1] / scale


def _pairs(records: Records | Sequence[Record]) -> Iterator[Pair]:
    source = listed(records) if isinstance(records, Sequence) else records
    for record in once(source.stream(seed=0)):
        if not isinstance(record, Pair) or not isinstance(record.first, str) or not isinstance(record.second, str):
            raise UserError(f"records: got a {type(record).__name__}, takes pairs of texts")
        if record.strength != 0.5 and record.strength == record.strength:
            yield record


def _layers(policy: TransformersPolicy, name: str) -> dict[str, Tensor]:
    """Weights of the linear layers whose names end so. Errors: UserError for none, and for one that does not read the residual stream."""
    width = int(policy.model.config.get_text_config().hidden_size)
    linear = {key: layer for key, layer in policy.model.named_modules() if isinstance(layer, nn.Linear)}
    found = {f"{key}.weight": layer.weight for key, layer in linear.items() if key == name or key.endswith(f".{name}")}
    if not found:
        names = ", ".join(sorted({key.rpartition(".")[2] for key in linear}))
        raise UserError(f"layers: got {name!r}, takes the end of a linear layer's name: {names}")
    if odd := [key for key, weight in found.items() if weight.shape[1] != width]:
        raise UserError(f"layers: {odd[0]} reads {found[odd[0]].shape[1]} numbers, takes layers that read the model's {width} states")
    return found
