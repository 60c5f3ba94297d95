"""What is known of a policy's own samples beside its reference, token by token: the KL, whatever rows it learns from, and diagnostics."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import TOPK_ENTROPY, TOPK_MASS, kls, rank, refs
from mmalign.runs.tokens import PREFIX
from mmalign.types import Policy, Rollout

ROWS = 16  # samples scored at once
Credits = list[tuple[int, int, float]]


@torch.no_grad()
def own_samples(policy: Policy, rollout: Rollout, reference: str, credits: list[Credits] | None = None) -> dict[str, Tensor]:
    """name -> ``[B]`` float64 of the rows that a policy generated (``abilities.Traced``), under the parameters that are in place.

    ``kl``: ``sum_t KL(policy(. | prompt, y_<t) || reference(. | prompt, y_<t))`` over the tokens of a sample y, its end included, in nats.
    The mean over a policy's own samples is the KL of whole samples, as each term is the exact expectation of a token's log-ratio (the
    chain rule), with less noise than log-ratios. It is not over given records: those are no samples of the policy, and their log-ratios
    are no KL. Samples that were drawn at another temperature, or cut off, weigh the prefixes as they were drawn.

    ``tokens/topk_entropy``, ``tokens/topk_mass``: ``H_k = -sum_(i<=k) p_i log p_i`` and ``M_k = sum_(i<=k) p_i`` over the k = 10 likeliest
    tokens, means over a sample's tokens: both fall together where a method goes on making pairs less likely than they are worth (Shi,
    Land, Locatelli, Geist, Bartolo, "Understanding Likelihood Over-optimisation in Direct Alignment Algorithms" (2024),
    https://arxiv.org/abs/2410.11677).

    ``tokens/unshifted``, ``marginal``, ``shifted``: the shares of a sample's tokens at which the likeliest token is the reference's
    likeliest, its second or third, or another one (Lin et al., "The Unlocking Spell on Base LLMs" (2023),
    https://arxiv.org/abs/2312.01552, who ask it of greedy answers: ``evaluation.call: {temperature: 0}``).

    NaN for a row without a live step. credits: gets for every row ``(start, end, log pi - log ref)`` of each token that shows in its
    text. Of a model that DPO made, beta times it is ``Q(s, a) - V(s)``: to which words it gives the credit for an answer, whose sum is
    its implicit reward (Rafailov et al., "From r to Q*: Your Language Model is Secretly a Q-Function" (2024),
    https://arxiv.org/abs/2404.12358, eq. 7 and 8).
    """
    needs = frozenset({kls(reference), TOPK_ENTROPY, TOPK_MASS, rank(reference)} | (set() if credits is None else {refs(reference)}))
    places_of = rollout.spans() if credits is not None and rollout.spans is not None else []
    parts = list[dict[str, Tensor]]()
    for rows in torch.arange(len(rollout)).split(ROWS):
        part, places = rollout.take(rows), torch.arange(len(rows))
        policy.remember(part, [reference], len(rows))
        steps = policy.steps(part, places, None, needs)
        ranks = steps.facts[str(rank(reference))]
        of_tokens = {
            "topk_entropy": steps.terms["topk_entropy"],
            "topk_mass": steps.terms["topk_mass"],
            "unshifted": ranks == 1,
            "marginal": (ranks > 1) & (ranks <= 3),
            "shifted": ranks > 3,
        }
        live = steps.mask.sum(1).double()
        if credits is not None:
            credits += _credits(rollout, rows, places_of, steps.log_probs - steps.refs[reference], steps.mask)
        means = {f"{PREFIX}{name}": _summed(table, steps.mask) / live for name, table in of_tokens.items()}
        kl = torch.where(live > 0, _summed(steps.kls[reference], steps.mask), torch.nan)
        parts.append({"kl": kl, **means})
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


@torch.no_grad()
def own_kl(policy: Policy, rollout: Rollout, reference: str) -> Tensor:
    """``[B]`` float64: ``kl`` of ``own_samples`` alone, to another reference.

    Beside a teacher (the proxy) that to the model which the teacher was trained to be (the golden one): both fall while a student learns,
    and where the second rises again the teacher is hacked (Tiapkin et al., "On Teacher Hacking in Language Model Distillation" (2025),
    https://arxiv.org/abs/2502.02671, *recalled*). Theirs are the other way round, over the golden model's samples; those of a data set of
    such samples are ``held_out/loss`` of ``sft``, up to a constant.
    """
    parts = list[Tensor]()
    for rows in torch.arange(len(rollout)).split(ROWS):
        part, places = rollout.take(rows), torch.arange(len(rows))
        policy.remember(part, [reference], len(rows))
        steps = policy.steps(part, places, None, frozenset({kls(reference)}))
        parts.append(torch.where(steps.mask.any(1), _summed(steps.kls[reference], steps.mask), torch.nan))
    return torch.cat(parts).cpu()


def _credits(rollout: Rollout, rows: Tensor, places: list[list[tuple[int, int]]], gained: Tensor, mask: Tensor) -> list[Credits]:
    """Of some rows; none of one that is no text."""
    found = list[Credits]()
    for row, values, live in zip(rows.tolist(), gained.tolist(), mask.tolist(), strict=True):
        own = places[row] if places and isinstance(rollout.outputs[row], str) else []
        known = zip(own, values, live, strict=False)
        found.append([(start, end, round(value, 4)) for (start, end), value, counts in known if counts and start < end])
    return found


def _summed(table: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, table.double(), 0.0).sum(1)
