"""Sampling of completions behind shared prompts, the same for a seed whatever else is in the batch.

Every row has its own uniform numbers, one for each step, and takes the token in whose stretch of the cumulated probabilities the number
falls: what a row draws depends on its distribution and its numbers alone. Rows that are over leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.policies.language.drawing.hidden_media import HiddenTokens, hidden_tokens
from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.fitting import Fit
from mmalign.policies.language.models.likely_words import likely, packed
from mmalign.policies.language.models.logits import Head
from mmalign.samplers.masking import Masking
from mmalign.stacking import stacked
from mmalign.types import Behavior, UserError


class Drawing(NamedTuple):
    """How tokens are drawn. temperature 0: the likeliest. top_p 1, top_k 0: all tokens. never: ids that are left out of the
    distribution. stops: ids that end. masking: whose likely words alone are left in it, and stops; None: all are."""

    temperature: float
    top_p: float
    top_k: int
    never: Tensor
    stops: Tensor
    most: int
    masking: Masking | None = None


class Drawn(NamedTuple):
    """tokens: ``[R, T]``, 0 behind the end. lengths: ``[R]``, the end included. cut: ``[R]`` bool, no end before ``most`` tokens.

    log_probs: ``[R, T]`` float64 of each token as it was drawn, at the temperature, before anything was cut off by top_p or top_k.
    allowed: ``[R, T, W]``, the words that ``masking`` left in, in bits (``likely_words.packed``); W is 0 where nothing was masked.
    """

    tokens: Tensor
    lengths: Tensor
    cut: Tensor
    log_probs: Tensor
    allowed: Tensor


class Voice(NamedTuple):
    """A set of parameters in a geometric mixture. share: its exponent. using: puts it in place."""

    share: float
    using: Callable[[], AbstractContextManager[None]]


ALONE = (Voice(1.0, nullcontext),)


@torch.no_grad()
def draw(  # all that a draw depends on
    backbone: nn.Module, head: Head, prompts: Sequence[Tensor], which: Tensor, uniform: Tensor, drawing: Drawing,
    extras: Sequence[Mapping[str, Tensor]] = (), *, voices: Sequence[Voice] = ALONE, hiding: HiddenTokens | None = None,
    masker: Voice | None = None,
) -> Drawn:  # fmt: skip
    """Completions of prompts. which: ``[R]`` the prompt of each row. uniform: ``[R, most]`` float64 in 0..1.

    voices: whose logits are mixed, ``sum_k share_k logits_k``: each token is drawn from ``prod_k pi_k^share_k``, normalised. Every one
    has a cache of its own. hiding: what is hidden of the prompts, while its ``over`` lasts. masker: the set that ``drawing.masking`` names.
    """
    listening = [*voices, *([] if masker is None else [masker])]
    device, rows = which.device, len(which)
    caches, states = [], []
    for voice in listening:
        with voice.using():
            start = prefixes.prefill(backbone, prompts, extras, device)
        start.cache.batch_select_indices(which)
        caches.append(start.cache)
        states.append(start.last[which])
    mask, shift = start.mask[which], start.shift[which]
    if hiding is not None:
        hiding.take(which)
    tokens = torch.zeros((rows, drawing.most), dtype=torch.int64, device=device)
    log_probs = torch.zeros((rows, drawing.most), dtype=torch.float64, device=device)
    lengths, over = torch.zeros(rows, dtype=torch.int64, device=device), torch.zeros(rows, dtype=torch.bool, device=device)
    alive = torch.arange(rows, device=device)
    allowed = torch.zeros((rows, drawing.most, 0), dtype=torch.uint8, device=device)
    for step in range(drawing.most):
        logits = _mixed(head, voices, states[: len(voices)])
        if masker is not None and drawing.masking is not None:
            words = _left_in(_mixed(head, [masker], states[-1:]), drawing.masking, drawing)
            logits, bits = logits.masked_fill(~words, -torch.inf), packed(words)
            allowed = allowed if step else allowed.new_zeros((rows, drawing.most, bits.shape[-1]))
            allowed[alive, step] = bits
        ids, log_prob = pick(logits, uniform[alive, step], drawing)
        tokens[alive, step], log_probs[alive, step], lengths[alive] = ids, log_prob, step + 1
        ended = torch.isin(ids, drawing.stops)
        over[alive] = ended
        if bool(ended.any()):
            keep = torch.nonzero(~ended).flatten()
            alive, ids, mask, shift = alive[keep], ids[keep], mask[keep], shift[keep]
            if hiding is not None:
                hiding.take(keep)
            if len(alive) and step + 1 < drawing.most:
                for cache in caches:
                    cache.batch_select_indices(keep)
        if not len(alive) or step + 1 == drawing.most:
            break
        mask = torch.cat([mask, mask.new_ones((len(alive), 1))], dim=1)
        for number, voice in enumerate(listening):
            with voice.using():
                states[number] = prefixes.follow(backbone, caches[number], mask, ids.unsqueeze(1), shift)[:, -1]
    width = int(lengths.max())
    return Drawn(tokens[:, :width], lengths, ~over, log_probs[:, :width], allowed[:, :width])


def _left_in(logits: Tensor, masking: Masking, drawing: Drawing) -> Tensor:
    """The words ``[R, V]`` that a masking leaves in, by the logits of its set."""
    probs = (logits.double() / (drawing.temperature or 1.0)).index_fill(-1, drawing.never, -torch.inf).softmax(-1)
    return likely(probs, masking.top_p, masking.least).index_fill(-1, drawing.stops, True)


def _mixed(head: Head, voices: Sequence[Voice], states: Sequence[Tensor]) -> Tensor:
    """``sum_k share_k logits_k [R, V]``, of one voice as they are."""
    logits = []
    for voice, state in zip(voices, states, strict=True):
        with voice.using():
            logits.append(head(state))
    return logits[0] if len(voices) == 1 else sum(voice.share * part.double() for voice, part in zip(voices, logits, strict=True))  # type: ignore[return-value]


def draw_by_generate(
    model: Any, prompts: Sequence[Tensor], which: Tensor, uniform: Tensor, drawing: Drawing, extras: Sequence[Mapping[str, Tensor]] = ()
) -> Drawn:
    """The same by the model's own ``generate``, for classes whose caches are of another kind; seeded by the first uniform number."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Never(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores[:, drawing.never] = -torch.inf
            return scores

    some = [prompts[prompt] for prompt in which.tolist()]
    ids, mask = prefixes.left_filled(some, which.device)
    row_extras = [extras[prompt] for prompt in which.tolist()] if extras else []
    inputs = prefixes.together(row_extras, [len(prompt) for prompt in some], ids.shape[1], left=True)
    sampled: dict[str, Any] = {"do_sample": drawing.temperature > 0}
    if drawing.temperature > 0:
        sampled |= {"temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": drawing.top_k}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(int(uniform[0, 0] * 2**53))
        whole = model.generate(
            ids, attention_mask=mask, **inputs, **sampled, max_new_tokens=drawing.most, eos_token_id=drawing.stops.tolist(), pad_token_id=0,
            logits_processor=LogitsProcessorList([Never()]),
        )  # fmt: skip
    tokens = whole[:, ids.shape[1] :]
    stopped = torch.isin(tokens, drawing.stops)
    cut = ~stopped.any(1)
    lengths = torch.where(cut, tokens.shape[1], stopped.int().argmax(1) + 1)
    tokens = tokens * (torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1))
    log_probs = torch.full(tokens.shape, torch.nan, dtype=torch.float64, device=tokens.device)
    return Drawn(tokens, lengths, cut, log_probs, tokens.new_zeros((*tokens.shape, 0), dtype=torch.uint8))


def pick(logits: Tensor, uniform: Tensor, drawing: Drawing) -> tuple[Tensor, Tensor]:
    """One token of each row and its log-probability, from logits ``[R, V]`` and numbers ``[R]`` in 0..1."""
    full = (logits.double() / (drawing.temperature or 1.0)).index_fill(-1, drawing.never, -torch.inf).log_softmax(-1)
    if drawing.temperature == 0:
        ids = full.argmax(-1)
        return ids, full.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    kept = full
    if drawing.top_k > 0:
        kept = kept.masked_fill(kept < kept.topk(min(drawing.top_k, kept.shape[-1]), dim=-1).values[:, -1:], -torch.inf)
    probs = kept.softmax(-1)
    if drawing.top_p < 1:
        probs = probs.masked_fill(~likely(probs, drawing.top_p), 0.0)
    bounds = probs.cumsum(-1)
    ids = torch.searchsorted(bounds, uniform.unsqueeze(-1).to(bounds) * bounds[:, -1:], right=True).squeeze(-1)
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).int().argmax(-1)
    ids = torch.minimum(ids, last)  # a number of 1 minus rounding
    return ids, full.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


CURRENT = {"current": 1.0}


@dataclass(frozen=True)
class Drawer:
    """A model that draws completions. rows_at_once: rows in one batch. using: puts a named set of parameters in place."""

    model: Any
    fit: Fit
    rows_at_once: int
    using: Callable[[str], AbstractContextManager[None]]

    def __call__(
        self, ids: Sequence[Sequence[int]], which: Tensor, uniform: Tensor, drawing: Drawing, *, shares: Mapping[str, float] = CURRENT,
        extras: Sequence[Mapping[str, Tensor]] = (), hidden: Sequence[Tensor] = (),
    ) -> Drawn:  # fmt: skip
        """Completions of prompts ``ids``. which: ``[R]`` the prompt of each row. uniform: ``[R, most]``. shares: as of ``types.Behavior``.

        extras: further inputs of each prompt, as of ``prefixes.Sequences``. hidden: of each prompt ``[L]`` bool, the tokens that get no
        attention. Errors: UserError for a mixture where the model's cache is not known.
        """
        voices = [Voice(share, lambda name=name: self.using(name)) for name, share in shares.items()]  # type: ignore[misc]
        if len(voices) > 1 and not self.fit.shared:
            raise UserError(
                f"behavior: got {', '.join(shares)}; {type(self.model).__name__} has no cache to mix distributions with, takes one set"
            )
        masker = None if drawing.masking is None else Voice(1.0, partial(self.using, drawing.masking.name))
        if masker is not None and not self.fit.shared:
            raise UserError(f"method: masks words, and {type(self.model).__name__} has no cache to read them with; takes another method")
        more_voices: dict[str, Any] = {"voices": voices, "masker": masker}
        parts, device = [], next(self.model.parameters()).device
        for rows in torch.arange(len(which)).split(self.rows_at_once):
            used, local = which[rows].unique(return_inverse=True)
            prompts = [torch.tensor(ids[place]) for place in used.tolist()]
            local, part = local.to(device), uniform[rows].to(device)
            more = [{key: value.to(device) for key, value in extras[place].items()} for place in used.tolist()] if extras else []
            hiding = hidden_tokens([hidden[place] for place in used.tolist()], device) if hidden else None
            with nullcontext() if hiding is None else hiding.over(self.model):
                if self.fit.shared:
                    drawn = draw(self.fit.backbone, self.fit.head, prompts, local, part, drawing, more, hiding=hiding, **more_voices)
                else:
                    if hiding is not None:
                        hiding.take(local)
                    with voices[0].using():
                        drawn = draw_by_generate(self.model, prompts, local, part, drawing, more)
            parts.append(Drawn(*(value.cpu() for value in drawn)))
        return joined(parts)

    def by_behaviors(
        self, ids: Sequence[Sequence[int]], which: Tensor, uniform: Tensor, drawing: Drawing, who: Tensor, behaviors: Sequence[Behavior],
        extras: Sequence[Mapping[str, Tensor]] = (),
    ) -> Drawn:  # fmt: skip
        """The same, where ``who [R]`` draws: 0 the current policy, k the k-th behavior."""
        parts, places = [], []
        for number, behavior in enumerate([None, *behaviors]):
            rows = torch.nonzero(who == number).flatten()
            shares = CURRENT if behavior is None else behavior.shares
            manner = drawing._replace(temperature=0.0) if behavior is not None and behavior.greedy else drawing
            parts.append(self(ids, which[rows], uniform[rows], manner, shares=shares, extras=extras))
            places.append(rows)
        order = torch.cat(places).argsort()
        return Drawn(*(values[order] for values in joined(parts)))


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Rows of several batches as one, filled up to the longest."""
    tables = {name: stacked([getattr(part, name) for part in parts]) for name in ("tokens", "log_probs", "allowed")}
    return Drawn(lengths=torch.cat([part.lengths for part in parts]), cut=torch.cat([part.cut for part in parts]), **tables)
