"""The weighted mean of several models."""

from __future__ import annotations

from mmalign.arguments.ranges import Finite
from mmalign.merges._parts import Merge
from mmalign.types import UserError


def soup(*, of: list[str], shares: list[Finite] | None = None) -> Merge:
    """``theta = sum_k share_k theta_k``: one mean of whole models, of adapters on one base, or of the experts of a pipeline each with each.

    of: names of parts; ``base`` is the policy's own weights. shares: one for each, which add up to 1, equal ones by default; one below 0
    goes away from that part.

    Paper: Model soups, https://arxiv.org/abs/2203.05482, eq. 1; of reward models WARM, https://arxiv.org/abs/2401.12187; of fine-tuned
    experts of a video model Cosmos-Predict2.5, https://arxiv.org/abs/2511.00062.

    Errors: UserError for fewer than two parts, a part named twice, and shares that do not add up to 1.

    Examples:
        >>> soup(of=["one", "two"]).shares
        ({'one': 0.5, 'two': 0.5},)
    """
    if len(of) < 2 or len(set(of)) < len(of):
        raise UserError(f"rule.of: got {of}, takes two or more parts, each once")
    given = [1 / len(of)] * len(of) if shares is None else shares
    if len(given) != len(of) or abs(sum(given) - 1) > 1e-6:
        raise UserError(f"rule.shares: got {given}, takes one for each of the {len(of)} parts, which add up to 1")
    return Merge((dict(zip(of, given, strict=True)),))
