"""A trained adapter whose singular values a search moves, by rewards alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.calls import described, node_of
from mmalign.arguments.ranges import Fraction
from mmalign.commands._own_code import own_code
from mmalign.commands._searching import Objective, log_of, searched
from mmalign.commands.export import base_node, inner, written
from mmalign.commands.merge import page
from mmalign.merges.settings import Search
from mmalign.policies.adapters import Form, refuse_taken
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.exports.ingredients import Ingredient, digest_of
from mmalign.types import Policy, UserError, contents


class Factor(NamedTuple):
    """A matrix of an adapter as ``U diag(s) V^T``; the first ``moved`` of its singular values are searched."""

    name: str
    left: Tensor
    values: Tensor
    right: Tensor
    moved: int

    def matrix(self, scales: Sequence[float]) -> Tensor:
        """With these factors on the values that are moved."""
        values = self.values.clone()
        values[: self.moved] *= torch.tensor(scales, dtype=torch.float64)
        return (self.left * values) @ self.right


def evolve(policy: Policy, search: Search, *, out: Path, part: Fraction = 1.0, prompt: str = "") -> Path:
    """Aligns an adapter without a gradient, by the singular values of its matrices, and writes it as an export does; returns the folder.

    Of every LoRA layer ``A = U_A diag(s_A) V_A^T`` and ``B = U_B diag(s_B) V_B^T``; U and V stand still, and CMA-ES moves all s::

        s' = z s,    z ~ N(m, sigma^2 C),    m, sigma and C by the ranks of the rewards

    Args:
        policy: with ``lora: {from: ...}``, an adapter that was trained before, by SFT or otherwise: in one that adds nothing (B = 0)
            there is nothing to move.
        search: prompts, rewards, evaluations, and the spread of the first z around 1. What was asked is kept in ``OUT.search/`` until
            the folder is there, so that a search that ends early goes on where it was.
        out: the folder, which appears whole or not at all.
        part: of each matrix's values that are moved, the largest first; at least one.
        prompt: of the one call by which what was written is compared with what was meant.

    Paper: ESSA: Evolutionary Strategies for Scalable Alignment, https://arxiv.org/abs/2507.04453. Deviations: z are factors on
    the values, so that one spread fits all layers; weights stay in the type that they have (the authors also infer in 4 and 8 bits).

    Errors: UserError for a policy without LoRA, or with one that is 0, and as of a search.
    """
    refuse_taken(out)
    own, node = inner(policy), base_node(described().get("policy") or node_of(policy))
    if own is None or node is None:
        raise UserError(f"policy: got a {type(policy).__name__}, takes a diffusers pipeline or a language model, or what wraps one")
    if not policy.sets.scales:
        raise UserError("policy.lora: missing; takes {from: RUN_OR_ADAPTER}, whose singular values are searched")
    factors = [_factored(name, p.detach(), part) for name, p in policy.parameters().items() if ".lora_" in name]
    if still := [factor.name for factor in factors if not bool(factor.values.any())]:
        raise UserError(f"policy.lora: {still[0]} is 0, so there is nothing to move; takes {{from: RUN_OR_ADAPTER}}, a trained one")
    moved, parameters = sum(factor.moved for factor in factors), policy.parameters()
    adapter = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    start = Ingredient(adapter, {}, digest_of(adapter, {}))

    @torch.no_grad()
    def become(scales: Sequence[float]) -> None:
        first = 0
        for factor in factors:
            parameters[factor.name].copy_(factor.matrix(scales[first : first + factor.moved]))
            first += factor.moved

    found = searched(Objective(policy, search, become), [1.0] * moved, log=log_of(out), identity={"adapter": start.digest, "part": part})
    become(found.best)
    code = own_code(node, own.pipe if isinstance(own, DiffusersPolicy) else own.model)
    place = str((node.get("lora") or {}).get("from", "the policy"))

    def card(forms: list[Form]) -> str:
        how = f"{moved} singular values of an adapter, moved by what rewards say (ESSA)"
        return page(out.name, node, forms, code, how=how, parts=[("adapter", place, start)], found=found)

    asked = prompt or str(next(iter(contents(search.prompts)), ""))
    written(policy, out, node, prompt=asked, card=card, beside=[*code.files, found.log])
    found.forget()
    return out


def _factored(name: str, matrix: Tensor, part: float) -> Factor:
    left, values, right = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
    return Factor(name, left, values, right, max(1, round(part * len(values))))
