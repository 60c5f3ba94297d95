"""The best that a KL-regularised policy can do, by counting out all that a language model can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Positive
from mmalign.types import UserError

__all__ = ["Optimum", "text_optimum"]

MOST = 2_000_000  # completions, at most


class Optimum(NamedTuple):
    """texts: every completion. base, best: their probabilities, ``[N]`` float64. reward: its mean under ``best``; kl: in nats."""

    texts: list[str]
    base: Tensor
    best: Tensor
    reward: float
    kl: float


@torch.no_grad()
def text_optimum(model: Any, tokenizer: Any, prompt: str, reward: Callable[..., Tensor], *, tokens: Count, beta: Positive) -> Optimum:
    """``p* = p exp(r / beta) / Z``, which maximises ``E[r] - beta KL(p* || p)``: of all completions of ``tokens`` tokens at most.

    A completion ends with the tokenizer's end of text, or at its last token. Ids that a policy never draws (pad, bos, unk) are left
    out.

    Args:
        model, tokenizer: of transformers, whose p it is. prompt: what the completions go on from.
        reward: ``(outputs, prompts) -> [B]``. tokens: of a completion, at most. beta: price of a nat, in units of the reward.

    Errors: UserError where there are more than two million completions.
    """
    stop, banned = tokenizer.eos_token_id, {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    allowed = [token for token in range(len(tokenizer)) if token not in banned]
    if (len(allowed) - 1) ** tokens > MOST:
        raise UserError(
            f"text_optimum: {len(allowed)} tokens, {tokens} times, are more than {MOST} completions; takes a smaller vocabulary"
        )
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ended: list[tuple[tuple[int, ...], float]] = []
    open_: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for place in range(tokens):
        rows = torch.tensor([[*start, *ids] for ids, _ in open_])
        logits = torch.cat([model(input_ids=part).logits[:, -1].double() for part in rows.split(512)])
        logits[:, sorted(banned)] = -torch.inf
        chances = logits.log_softmax(-1).tolist()
        longer = [((*ids, token), log_prob + row[token]) for (ids, log_prob), row in zip(open_, chances, strict=True) for token in allowed]
        ended += [(ids[:-1] if ids[-1] == stop else ids, log_prob) for ids, log_prob in longer if ids[-1] == stop or place == tokens - 1]
        open_ = [(ids, log_prob) for ids, log_prob in longer if ids[-1] != stop and place < tokens - 1]
    texts = [tokenizer.decode(list(ids)) for ids, _ in ended]
    base = torch.tensor([log_prob for _, log_prob in ended], dtype=torch.float64)
    scores = reward(texts, [prompt] * len(texts)).double()
    best = (base + scores / beta).log_softmax(0)
    kl = (best.exp() * (best - base)).sum()
    return Optimum(texts, base.exp(), best.exp(), float((best.exp() * scores).sum()), float(kl))
