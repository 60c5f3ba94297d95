"""Text as particles: blocks of tokens are drawn, weighed by what they promise, and gone on with. The filter is that of ``particles``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion, Seed
from mmalign.guidance import _smc
from mmalign.guidance.ledger import Ledger
from mmalign.guidance.logits import numbers
from mmalign.guidance.particles import LOG_POTENTIALS, Particles, Rule
from mmalign.types import UserError

__all__ = ["Decoded", "beam_search", "log_ratio", "steered", "text_value"]

Value = Callable[[Tensor, int], Tensor]
"""Token ids ``[N, T]`` and the length of the prompts (padding included) -> ``[N]``."""


@dataclass(frozen=True)
class Decoded:
    """tokens: ``[B, T]`` of the chosen completions, ``pad`` behind the end. values: ``[B]``. log_normaliser: ``[B]``. ledger."""

    tokens: Tensor
    values: Tensor
    log_normaliser: Tensor
    ledger: Ledger


def steered(  # a decoder of language models: which model, how, how long
    model: Any, input_ids: Tensor, value: Value, *, particles: Count = 4, block: Count = 8, max_new_tokens: Count = 64,
    scale: NotNegative = 1.0, ess: Proportion = 0.5, select: Literal["best", "draw"] = "best", keep: Count | None = None,
    temperature: Positive = 1.0, seed: Seed = 0,
) -> Decoded:  # fmt: skip
    """Completions of prompts by ``particles`` of each, weighed after every ``block`` tokens: the target is ``p exp(scale value)``.

    Paper: Controlled Decoding from Language Models, https://arxiv.org/abs/2310.17022 (blockwise best-of-K: ``keep=1``)

    Args:
        model: of transformers, with a cache. input_ids: ``[B, P]``, padded on the left with the model's pad token.
        value: what a text so far promises; of a finished one, its reward.
        block: tokens between two weighings. max_new_tokens: of the longest completion.
        scale, ess, select: as in ``fk``; weights are differences of values. particles: 1 is the model itself.
        keep: take the best so many of the particles after each block, whatever ``scale`` is, in place of weights: 1 is blockwise
            best-of-N, and one block of all tokens is best-of-N.
        temperature: of the draws, above 0. seed: of everything that is random.

    Cost: ``particles`` tokens for each that is handed over, and as many values a block.

    Errors: UserError for a number out of range, and for values that are not one for each text.
    """
    _check(particles=particles, block=block, max_new_tokens=max_new_tokens, keep=keep, temperature=temperature, scale=scale)
    groups, ledger, started = len(input_ids), Ledger(), time.perf_counter()
    rule = Rule(scale=scale, log_potential=LOG_POTENTIALS["difference"], every=1, start=0.0, stop=1.0, ess=ess, select=select)
    filter_ = Particles(_Seeded(seed), range(groups * particles), particles, rule)  # type: ignore[arg-type]
    text = _Text(model, input_ids.repeat_interleave(particles, 0), torch.Generator(input_ids.device).manual_seed(seed), ledger)
    width = input_ids.shape[1]
    values = torch.zeros((groups, particles), dtype=torch.float64)
    while text.ids.shape[1] < width + max_new_tokens and not bool(text.over.all()):
        text.grow(min(block, width + max_new_tokens - text.ids.shape[1]), temperature)
        values = numbers("steered", value(text.ids, width), groups * particles).double().cpu().view(groups, particles)
        ledger.rewards += values.numel()
        ledger.missing += int((~values.isfinite()).sum())
        if text.ids.shape[1] == width + max_new_tokens or bool(text.over.all()):
            break
        parents = _best_of(values, keep) if keep is not None else filter_.weighed(_smc.imputed(values))
        if parents is not None:
            text.take(parents.to(input_ids.device))
            values = values.flatten()[parents].view(groups, particles)
    picked = _smc.best(values) if keep is not None else filter_.chosen(values)
    if keep is not None or select == "best":
        filter_.finish(_smc.imputed(values))
    rows = torch.arange(groups) * particles + picked
    ledger.seconds = time.perf_counter() - started
    return Decoded(text.ids[rows, width:], values.flatten()[rows], filter_.log_normaliser, ledger)


def beam_search(  # a decoder of language models: which model, how, how long
    model: Any, input_ids: Tensor, *, tuned: Any, untuned: Any, width: Count = 2, successors: Count = 2, block: Count = 30,
    max_new_tokens: Count = 60, temperature: Positive = 1.0, seed: Seed = 0,
) -> Decoded:  # fmt: skip
    """Beams of blocks under ``log p_tuned - log p_untuned`` of two small models: what DPO taught them is a value function.

    Paper: Weak-to-Strong Search, https://arxiv.org/abs/2405.19262; From r to Q*, https://arxiv.org/abs/2404.12358

    Args:
        model, input_ids, max_new_tokens, temperature: as in ``steered``.
        tuned, untuned: models of one tokenizer with ``model``, after DPO and before it.
        width: beams kept after each block (W). successors: continuations drawn of each (K). block: tokens (L). The paper: 2, 2, 30.

    Errors: as in ``steered``.
    """
    return steered(
        model, input_ids, log_ratio(tuned, untuned), particles=width * successors, keep=width, block=block, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed,
    )  # fmt: skip


def log_ratio(tuned: Any, untuned: Any) -> Value:
    """The value ``ln p_tuned(completion) - ln p_untuned(completion)`` in nats: the reward of DPO, divided by its beta.

    tuned, untuned: models of one tokenizer with the model that is guided.
    """

    def value(ids: Tensor, width: int) -> Tensor:
        return _log_prob(tuned, ids, width) - _log_prob(untuned, ids, width)

    return value


def text_value(reward: Callable[..., Any], tokenizer: Any, prompts: Sequence[Any]) -> Value:
    """A reward of texts as a value of tokens.

    reward: ``(outputs, prompts) -> [B]``. tokenizer: of the model that is guided. prompts: one for each row of ``input_ids``.
    """

    def value(ids: Tensor, width: int) -> Tensor:
        texts = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        each = len(texts) // len(prompts)
        return torch.as_tensor(reward(texts, [prompt for prompt in prompts for _ in range(each)])).double()

    return value


# Parts


@dataclass(frozen=True)
class _Seeded:
    """As much of a run as the filter asks for."""

    seed: int


class _Text:
    """Rows of tokens that grow behind one cache."""

    def __init__(self, model: Any, ids: Tensor, rng: torch.Generator, ledger: Ledger):
        self.model, self.ids, self.rng, self.ledger = model.eval(), ids, rng, ledger
        self.cache: Any = None
        self.pad = 0 if model.config.pad_token_id is None else int(model.config.pad_token_id)
        ends = model.config.eos_token_id
        self.ends = torch.tensor([] if ends is None else ends, dtype=torch.int64, device=ids.device).flatten()
        self.over = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        padded = model.config.pad_token_id is not None
        self.mask = (ids != self.pad).long().cummax(1).values if padded else torch.ones_like(ids)
        self.unread = ids.shape[1]

    @torch.no_grad()
    def grow(self, count: int, temperature: float) -> None:
        """So many tokens more in every row; rows that are over get the pad token."""
        for _ in range(count):
            place = (self.mask.cumsum(1) - 1).clamp(min=0)
            outputs = self.model(
                input_ids=self.ids[:, -self.unread :], attention_mask=self.mask, position_ids=place[:, -self.unread :],
                past_key_values=self.cache, use_cache=True,
            )  # fmt: skip
            self.ledger.evaluations += len(self.ids)
            self.cache, self.unread = outputs.past_key_values, 1
            shares = (outputs.logits[:, -1].double() / temperature).softmax(-1)
            drawn = torch.multinomial(shares, 1, generator=self.rng)[:, 0]
            drawn = torch.where(self.over, self.pad, drawn)
            self.ids = torch.cat([self.ids, drawn[:, None]], dim=1)
            self.mask = torch.cat([self.mask, torch.ones_like(drawn)[:, None]], dim=1)
            self.over = self.over | torch.isin(drawn, self.ends)
            if bool(self.over.all()):
                return

    def take(self, parents: Tensor) -> None:
        self.ids, self.mask, self.over = self.ids[parents], self.mask[parents], self.over[parents]
        self.cache.batch_select_indices(parents)


@torch.no_grad()
def _log_prob(model: Any, ids: Tensor, width: int) -> Tensor:
    """``ln p`` of what comes after ``width`` tokens, ``[N]`` float64; pads do not count."""
    pad, ends = model.config.pad_token_id, model.config.eos_token_id
    mask = torch.ones_like(ids) if pad is None else (ids != pad).long().cummax(1).values
    place = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=place).logits[:, width - 1 : -1].double()
    log_probs = logits.log_softmax(-1).gather(2, ids[:, width:, None])[..., 0]
    if ends is None:
        return log_probs.sum(1)
    ended = torch.isin(ids[:, width:], torch.as_tensor(ends, device=ids.device).flatten())
    before = ended.long().cumsum(1) - ended.long()  # ends that came before this token
    return torch.where(before == 0, log_probs, 0.0).sum(1)


def _best_of(values: Tensor, keep: int) -> Tensor:
    """Row numbers: the best ``keep`` of each group, each as often as the others."""
    groups, count = values.shape
    order = torch.where(values.isfinite(), values, -math.inf).argsort(dim=1, descending=True, stable=True)[:, :keep]
    return (torch.arange(groups)[:, None] * count + order.repeat_interleave(count // keep, 1)).flatten()


def _check(*, particles: int, block: int, max_new_tokens: int, keep: int | None, temperature: float, scale: float) -> None:
    for key, number in {"particles": particles, "block": block, "max_new_tokens": max_new_tokens}.items():
        if number < 1:
            raise UserError(f"steered.{key}: got {number}, takes 1 or more")
    if keep is not None and (keep < 1 or particles % keep):
        raise UserError(f"steered.keep: got {keep} of {particles} particles, takes a number that divides them")
    if temperature <= 0:
        raise UserError(f"steered.temperature: got {temperature}, takes a number above 0")
    if not 0 <= scale < math.inf:
        raise UserError(f"steered.scale: got {scale}, takes a finite number of 0 or more; keep=1 takes the best")
