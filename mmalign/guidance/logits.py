"""Language models guided while they decode: what goes into ``model.generate(..., logits_processor=...)`` of transformers.

The operator is that of ``extrapolation``, on next-token logits: ``a + scale (b - a)`` between two models, and a softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Finite, Proportion
from mmalign.guidance._checks import check_finite
from mmalign.guidance.extrapolation import extrapolate
from mmalign.policies.language.scoring.heads import of_dead_ends
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import UserError

__all__ = ["contrastive", "dead_ends", "proxy_tuning", "rectified", "value_guided"]

Value = Callable[[Tensor], Tensor]


def proxy_tuning(*, tuned: Any, untuned: Any, scale: Finite = 1.0) -> Any:
    """A large model as if it had been tuned like a small one: ``logits + scale (logits_tuned - logits_untuned)``.

    Paper: Tuning Language Models by Proxy, https://arxiv.org/abs/2401.08565; Emulated fine-tuning, https://arxiv.org/abs/2310.12962

    The same algebra as ``rlg``: with both in the large model's place, scale 0 is the untuned and 1 the tuned one.

    tuned, untuned: models of one tokenizer with the model that generates. scale: 0 is the large model as it is.

    Cost: a pass of each small model for each token.

    Errors: UserError for models of another number of words.
    """
    check_finite("proxy_tuning", scale=scale)
    plus, minus = _Reader(tuned), _Reader(untuned)

    def change(ids: Tensor, scores: Tensor) -> Tensor:
        _same_words("proxy_tuning", scores, plus.logits(ids), minus.logits(ids))
        return scores if scale == 0 else scores + scale * (plus.last - minus.last).to(scores)

    return _processors(change)


def contrastive(*, amateur: Any, scale: Finite = 1.5, plausible: Proportion = 0.1) -> Any:
    """Away from a weaker model, among the words that the stronger one finds plausible.

    Paper: Contrastive Decoding, https://arxiv.org/abs/2210.15097; in this form https://arxiv.org/abs/2309.09117

        logits = logits_amateur + scale (logits - logits_amateur),   where p >= plausible * max p; minus infinity elsewhere

    Args:
        amateur: a weaker model of the same tokenizer.
        scale: 1 is the model itself (their beta is one less).
        plausible: the least share of the likeliest word's probability that a word needs, 0 to 1; 0 takes all words.

    Cost: a pass of the amateur for each token.

    Errors: UserError for a share outside 0..1, and for a model of another number of words.
    """
    if not 0 <= plausible <= 1:
        raise UserError(f"contrastive.plausible: got {plausible}, takes 0 to 1")
    check_finite("contrastive", scale=scale)
    weaker = _Reader(amateur)

    def change(ids: Tensor, scores: Tensor) -> Tensor:
        _same_words("contrastive", scores, weaker.logits(ids))
        logits = extrapolate(weaker.last.log_softmax(-1).to(scores), scores.log_softmax(-1), scale)
        if plausible == 0:
            return logits
        floor = scores.amax(-1, keepdim=True) + math.log(plausible)
        return torch.where(scores >= floor, logits, float("-inf"))

    return _processors(change)


def value_guided(*, value: Value, scale: Finite = 1.0, top: Count = 20) -> Any:
    """Controlled decoding token by token: ``logits + scale value(text so far and the token)``, for the ``top`` likeliest tokens.

    Paper: Controlled Decoding from Language Models, https://arxiv.org/abs/2310.17022

    Args:
        value: token ids ``[N, T]`` -> ``[N]``, the reward that is expected from here.
        scale: of it; the target is ``p exp(scale value)``. top: likeliest tokens that are valued; all others are left out.

    Cost: ``top`` values for each token. ``steered`` does it block by block.

    Errors: UserError for a ``top`` below 1, and for values that are not one for each text.
    """
    check_finite("value_guided", scale=scale)
    if top < 1:
        raise UserError(f"value_guided.top: got {top}, takes 1 or more")

    def change(ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.topk(min(top, scores.shape[-1]), dim=-1)
        rows, count = best.indices.shape
        every = torch.cat([ids.repeat_interleave(count, 0), best.indices.reshape(-1, 1)], dim=1)
        values = numbers("value_guided", value(every), rows * count).view(rows, count).to(scores)
        return torch.full_like(scores, float("-inf")).scatter(1, best.indices, best.values + scale * values)

    return _processors(change)


def rectified(*, dead_end: Callable[[Tensor], Tensor]) -> Any:
    """No token is likelier than its chance of not leading into a dead end: ``p(a) <= 1 + Q(s, a)``, renormalised.

    Paper: Systematic Rectification of Language Models via Dead-end Analysis, https://arxiv.org/abs/2302.14003

    A bound and not a tilt: tokens that are safe keep their order. Where all that is left is capped to 0, the least bad token stands.

    dead_end: token ids ``[B, T]`` -> ``Q [B, V]`` in -1..0, minus the probability that a bad end is unavoidable after each next token.

    Cost: a pass of the value model for each token.

    Errors: UserError for values outside -1..0, and for a table of another shape.
    """

    def change(ids: Tensor, scores: Tensor) -> Tensor:
        bound = dead_end(ids).to(scores)
        if bound.shape != scores.shape:
            raise UserError(f"rectified.dead_end: got {list(bound.shape)}, takes one for each next token: {list(scores.shape)}")
        low, high = float(bound.min()), float(bound.max())
        if not (low >= -1 - 1e-4 and high <= 1e-4):
            raise UserError(f"rectified.dead_end: got numbers from {low:.4g} to {high:.4g}, takes -1 to 0")
        capped = torch.minimum(scores.softmax(-1), (1 + bound).clamp(0, 1))
        logits = capped.log()
        nothing = capped.sum(-1, keepdim=True) <= 0
        least = torch.full_like(scores, float("-inf")).scatter(1, bound.argmax(-1, keepdim=True), 0.0)
        return torch.where(nothing, least, logits)

    return _processors(change)


def dead_ends(policy: TransformersPolicy) -> Callable[[Tensor], Tensor]:
    """What ``rectified`` takes as ``dead_end``, of a policy that ``dead_end_value`` has trained.

    policy: with the head ``dead_end``: its own, and the words of the model that is rectified. Of a finished run
    ``mmalign.runs.trained.trained(folder).policy()``.

    Cost: a pass of its model over the text so far, for each token.

    Errors: UserError for a policy without that head.
    """
    if "dead_end" not in getattr(policy, "heads", {}):
        raise UserError("dead_ends.policy: has no head dead_end; takes a policy of transformers with heads: [dead_end]")
    head, model = policy.heads["dead_end"], policy.model

    @torch.no_grad()
    def value(ids: Tensor) -> Tensor:
        states = model.base_model(**_given(model, ids)).last_hidden_state[:, -1]
        return of_dead_ends(head, states)

    return value


# Parts


def _given(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Inputs of a model for ``ids [B, T]``, whose pads on the left are not read."""
    pad = model.config.pad_token_id
    mask = torch.ones_like(ids) if pad is None else (ids != pad).long().cummax(1).values
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


class _Reader:
    """A model that reads what another one writes, one token at a time behind its own cache; ``last``: its logits ``[B, V]``."""

    def __init__(self, model: Any):
        self.model, self.ids, self.cache = model.eval(), torch.zeros((0, 0), dtype=torch.int64), None
        self.last = torch.zeros(0)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Next-token logits after ``ids [B, T]``; pads on the left are not read. What is not a continuation is read anew."""
        given, behind = _given(self.model, ids), self.ids.shape[1]
        goes_on = self.cache is not None and ids.shape[1] == behind + 1 and torch.equal(ids[:, :behind], self.ids)
        new = slice(behind, None) if goes_on else slice(None)
        outputs = self.model(
            input_ids=ids[:, new], attention_mask=given["attention_mask"], position_ids=given["position_ids"][:, new], use_cache=True,
            past_key_values=self.cache if goes_on else None,
        )  # fmt: skip
        self.ids, self.cache, self.last = ids.clone(), outputs.past_key_values, outputs.logits[:, -1].float()
        return self.last


def _processors(change: Callable[[Tensor, Tensor], Tensor]) -> Any:
    from transformers import LogitsProcessorList

    return LogitsProcessorList([_Processor(change)])  # type: ignore[list-item]


class _Processor:
    """The form in which ``generate`` asks: ``(input_ids, scores) -> scores``."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]):
        self.change = change

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.change(input_ids, scores)


def _same_words(name: str, scores: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != scores.shape:
            raise UserError(
                f"{name}: got a model of {other.shape[-1]} words beside one of {scores.shape[-1]}, takes models of one tokenizer"
            )


def numbers(name: str, values: Any, count: int) -> Tensor:
    """What a user's function gave, ``[count]``. Errors: UserError for anything else, by the name of who asked."""
    if not isinstance(values, Tensor) or tuple(values.shape) != (count,):
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"{name}.value: got {got}, takes one number for each of {count} texts")
    return values
