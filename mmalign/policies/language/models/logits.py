"""From hidden states to log-probabilities, a few positions at a time: ``[positions, vocabulary]`` is never held as a whole.

The head is the model's own: its ``forward`` runs with a backbone that answers with given hidden states, so that whatever a class does
to its logits (soft caps, scales, biases) is done. Where that is one matrix and nothing else, which is tried once, the matrix is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmalign.needs import COLLISION, ENTROPY, TOPK_ENTROPY, TOPK_MASS
from mmalign.policies.language.models.likely_words import unpacked
from mmalign.types import Need

NOTHING = -1e9
"""The logit of what is never said: its probability is 0 to the last bit, and no difference of two of them is NaN."""

ROWS = 1024
"""Positions whose pieces of the vocabulary are computed at a time."""

LOG_PROBS = Need("log_probs")
"""Of the tokens that are there: what every table holds."""

DISTRIBUTION = frozenset({"entropy", "collision", "topk_entropy", "topk_mass"})
"""Needs of a distribution by itself."""

COMPARED = ("kls", "reverse_kls", "rank")
"""Needs of a distribution beside a reference's."""

TOP_K = 10
"""How many of the likeliest outcomes ``topk_entropy`` and ``topk_mass`` are of."""

Head = Callable[[Tensor], Tensor]
"""Hidden states ``[N, H]`` -> logits ``[N, V]``."""


def own_head(model: nn.Module) -> Head:
    """Logits as the model's own ``forward`` makes them, whose backbone gives an answer of its own class."""
    backbone: nn.Module = model.base_model  # type: ignore[assignment]
    kinds: list[type] = []

    def head(hidden: Tensor) -> Tensor:
        if not kinds:
            with torch.no_grad():
                ids = torch.zeros((1, 1), dtype=torch.int64, device=hidden.device)
                kinds.append(type(backbone(input_ids=ids, use_cache=False, return_dict=True)))
        states = kinds[0](last_hidden_state=hidden.unsqueeze(0))
        ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
        with answering(backbone, states):
            logits: Tensor = model(input_ids=ids, use_cache=False, return_dict=True).logits
        return logits.squeeze(0)

    return head


@dataclass(frozen=True)
class Matrix:
    """A head that is one linear layer and nothing else."""

    layer: nn.Linear

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.layer.weight, self.layer.bias)


def matrix_head(model: nn.Module) -> Matrix | None:
    """Logits as one matrix makes them, where the model's output embedding is a plain linear layer; None where it is not."""
    layer = model.get_output_embeddings()  # type: ignore[operator]
    return Matrix(layer) if type(layer) is nn.Linear else None


class Chosen(torch.autograd.Function):
    """Log-probabilities ``[N]`` float64 of tokens under one matrix; logits are there for a few words of the vocabulary at a time.

    With respect to h: ``(W_y - sum_v p_v W_v) / temperature``; to ``W_v``: ``(1[v = y] - p_v) h / temperature``. Where the matrix is not
    trained, the first is found along with the log-probabilities (sums that are scaled down whenever a larger logit turns up) and nothing
    is computed again; where it is, the backward pass computes the logits once more.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """inputs: hidden ``[N, H]``, weight ``[V, H]``, bias ``[V]`` or None, tokens ``[N]``, temperature, logits at once, never, and
        whether a backward pass will follow (there is none under ``no_grad``, which a function cannot see).
        """
        hidden, weight, bias, tokens, temperature, at_once, never, backward = inputs
        ctx.settings, wide = (temperature, at_once, never), torch.promote_types(hidden.dtype, torch.float32)
        top, own_logits = (hidden.new_full((len(hidden),), -torch.inf, dtype=wide) for _ in range(2))
        total = hidden.new_zeros(len(hidden), dtype=torch.float64)
        needs_mean = backward and ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3])
        mean = torch.zeros_like(hidden, dtype=wide) if needs_mean else None
        for at, words, logits in _pieces(hidden, weight, bias, *ctx.settings):
            place = (tokens[at] - words.start).unsqueeze(-1)
            here = (place >= 0) & (place < logits.shape[-1])
            logits_here = logits.gather(-1, place.clamp(0, logits.shape[-1] - 1))
            own_logits[at] = torch.where(here, logits_here, own_logits[at].unsqueeze(-1)).squeeze(-1)
            larger = torch.maximum(top[at], logits.amax(-1))
            faded, top[at] = (top[at] - larger).exp(), larger
            shares = logits.sub_(larger.unsqueeze(-1)).exp_()
            total[at] = total[at] * faded + shares.sum(-1)
            if mean is not None:
                mean[at] = mean[at] * faded.unsqueeze(-1) + shares.to(weight.dtype) @ weight[words]
        slopes = None
        if mean is not None:
            slopes = ((weight[tokens] - mean / total.to(wide).unsqueeze(-1)) / temperature).to(hidden.dtype)
        ctx.save_for_backward(hidden, weight, bias, tokens, (top + total.log()).to(wide), slopes)
        return (own_logits.double() - top) - total.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """As the docstring of the class says."""
        hidden, weight, bias, tokens, sums, slopes = ctx.saved_tensors
        upstream = gradients[0].to(sums.dtype).unsqueeze(-1)
        if slopes is not None:
            return upstream.to(slopes.dtype) * slopes, *[None] * 7
        scale = upstream / ctx.settings[0]
        scaled = scale * hidden.to(scale.dtype)
        mean = torch.zeros_like(hidden, dtype=sums.dtype)
        to_weight = torch.zeros_like(weight, dtype=sums.dtype)
        to_bias = None if bias is None else torch.zeros_like(bias, dtype=sums.dtype)
        for at, words, logits in _pieces(hidden, weight, bias, *ctx.settings):
            probs = logits.sub_(sums[at].unsqueeze(-1)).exp_()
            mean[at] += probs.to(weight.dtype) @ weight[words]
            to_weight[words].addmm_(probs.t(), scaled[at], alpha=-1)
            if to_bias is not None:
                to_bias[words] -= (probs * scale[at]).sum(0)
        to_hidden = (scale * (weight[tokens] - mean)).to(hidden.dtype)
        to_weight.index_add_(0, tokens, scaled)
        if to_bias is not None:
            to_bias = to_bias.index_add_(0, tokens, scale.squeeze(-1)).to(bias.dtype)
        return to_hidden, to_weight.to(weight.dtype), to_bias, *[None] * 5


@contextmanager
def answering(backbone: nn.Module, answer: Any) -> Iterator[None]:
    """The backbone's ``forward`` replaced by an answer while the block lasts."""
    backbone.__dict__["forward"] = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        del backbone.__dict__["forward"]


def numbers_of(  # all that a number depends on
    head: Head, hidden: Tensor, tokens: Tensor, *, temperature: float = 1.0, numbers: frozenset[Need] = frozenset(), at_once: int = 256,
    others: Mapping[str, tuple[Head, Tensor]] | None = None, never: Tensor | None = None, allowed: Tensor | None = None,
) -> dict[Need, Tensor]:  # fmt: skip
    """What is asked of the distributions at N positions, ``[N]`` float64 each, in chunks that the backward pass computes again.

    hidden: ``[N, H]``. tokens: ``[N]`` ids. temperature: logits are divided by it. numbers: further ones, of ``DISTRIBUTION`` and
    of ``COMPARED`` with a name. at_once: positions in one chunk. others: name ->
    head and hidden states ``[N, H]`` of a reference, without gradient. never: ids ``[K]`` that are left out of every distribution.
    allowed: ``[N, W]``, what is left in at each position, as ``likely_words.packed`` has it; None: all.

    Returns ``LOG_PROBS`` and the numbers. Log-sum-exp in float32 at least (float64 for a model in float64).
    """
    names, others = sorted(numbers), dict(others or {})
    if isinstance(head, Matrix) and not names and allowed is None:
        layer = head.layer
        settings = (temperature, at_once * len(layer.weight), never, torch.is_grad_enabled())
        return {LOG_PROBS: Chosen.apply(hidden, layer.weight, layer.bias, tokens, *settings)}

    def piece(part: Tensor, ids: Tensor, words: Tensor | None, *theirs: Tensor) -> tuple[Tensor, ...]:
        logits = _tempered(head(part), temperature, never, words)
        log_probs = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        if not names:
            return (log_probs.double(),)
        full = logits.log_softmax(-1)
        pairs = zip(others.items(), theirs, strict=True)
        as_wide = lambda theirs: _as_wide(theirs, logits.shape[-1])  # noqa: E731
        tempered = lambda theirs: _tempered(as_wide(theirs), temperature, never, words)  # noqa: E731
        compared = {name: tempered(other(states)).log_softmax(-1) for (name, (other, _)), states in pairs}
        return (log_probs.double(), *(_number(need, full, compared).double() for need in names))

    chunks = []
    for at in _chunks(len(hidden), at_once):
        inputs: tuple[Any, ...] = (hidden[at], tokens[at], None if allowed is None else allowed[at])
        inputs += tuple(states[at] for _, states in others.values())
        with_graph = torch.is_grad_enabled()
        chunks.append(checkpoint(piece, *inputs, use_reentrant=False, preserve_rng_state=False) if with_graph else piece(*inputs))
    if not chunks:
        return {name: hidden.new_zeros(0, dtype=torch.float64) for name in (LOG_PROBS, *names)}
    columns = [torch.cat(values) for values in zip(*chunks, strict=True)]
    return dict(zip((LOG_PROBS, *names), columns, strict=True))


def distribution(
    head: Head, hidden: Tensor, *, temperature: float = 1.0, never: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor:
    """Log-probabilities ``[N, V]`` at N positions, all at once; arguments as of ``numbers_of``."""
    return _tempered(head(hidden), temperature, never, allowed).log_softmax(-1)


def _pieces(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, at_once: int, never: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Positions, words and their logits ``[n, v]``, in one piece of memory that may be written into; a word's positions side by side."""
    rows = min(ROWS, len(hidden))
    columns = min(max(1, at_once // max(rows, 1)), len(weight))
    room = hidden.new_empty(rows * columns)
    for words in _chunks(len(weight), columns):
        part = weight[words]
        banned = None if never is None else never[(never >= words.start) & (never < words.stop)] - words.start
        for at in _chunks(len(hidden), rows):
            count = at.stop - at.start
            logits = torch.mm(hidden[at], part.t(), out=room[: count * len(part)].view(count, len(part)))
            logits = logits if bias is None else logits.add_(bias[words])
            logits = _wider(logits)
            logits = logits if temperature == 1 else logits.div_(temperature)
            yield at, words, logits if banned is None else logits.index_fill_(-1, banned, NOTHING)


def _chunks(count: int, at_once: int) -> Iterator[slice]:
    return (slice(place, min(place + at_once, count)) for place in range(0, count, max(at_once, 1)))


def _wider(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _as_wide(logits: Tensor, width: int) -> Tensor:
    """Another model's logits ``[n, W]`` as ``[n, width]``: what one of both has no word for is never said, by neither."""
    more = width - logits.shape[-1]
    return logits if not more else functional.pad(logits, (0, more), value=NOTHING)  # a negative number cuts


def _tempered(logits: Tensor, temperature: float, never: Tensor | None, allowed: Tensor | None) -> Tensor:
    logits = _wider(logits)
    logits = logits if temperature == 1 else logits / temperature
    logits = logits if never is None else logits.index_fill(-1, never, NOTHING)
    return logits if allowed is None else logits.masked_fill(~unpacked(allowed, logits.shape[-1]), NOTHING)


def _number(need: Need, full: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """One number of each distribution, from its log-probabilities ``[N, V]``; impossible tokens (-inf) count nothing."""
    if need == COLLISION:
        return (2 * full).logsumexp(-1)
    if need == ENTROPY:
        return -_expected(full, full)
    if need in (TOPK_ENTROPY, TOPK_MASS):
        top = full.topk(min(TOP_K, full.shape[-1])).values
        return top.exp().sum(-1) if need == TOPK_MASS else -_expected(top, top)
    other = others[need.name]
    if need.kind == "rank":
        return 1 + (other > other.gather(-1, full.argmax(-1, keepdim=True))).sum(-1)
    return _expected(full, full - other) if need.kind == "kls" else _expected(other, other - full)


def _expected(log_probs: Tensor, values: Tensor) -> Tensor:
    """``sum p v`` where tokens of probability 0 count nothing, in the value and in the gradient."""
    possible = log_probs > -torch.inf
    return (log_probs.exp() * torch.where(possible, values, 0.0)).sum(-1)
