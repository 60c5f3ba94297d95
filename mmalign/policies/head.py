"""From hidden states to log-probabilities, a few positions at a time: ``[positions, vocabulary]`` is never held as a whole.

The head is the model's own: its ``forward`` runs with a backbone that answers with given hidden states, so that whatever a class does
to its logits (soft caps, scales, biases) is done. Where that is one matrix and nothing else, which is tried once, the matrix is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__: list[str] = []  # nothing here is looked up by name

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
        said = kinds[0](last_hidden_state=hidden.unsqueeze(0))
        ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
        with answering(backbone, said):
            logits: Tensor = model(input_ids=ids, use_cache=False, return_dict=True).logits
        return logits.squeeze(0)

    return head


def matrix_head(model: nn.Module) -> Head | None:
    """Logits as one matrix makes them, where the model's output embedding is a plain linear layer; None where it is not."""
    layer = model.get_output_embeddings()  # type: ignore[operator]
    if type(layer) is not nn.Linear:
        return None
    return lambda hidden: functional.linear(hidden, layer.weight, layer.bias)


@contextmanager
def answering(backbone: nn.Module, said: Any) -> Iterator[None]:
    """The backbone's ``forward`` replaced by an answer while the block lasts."""
    backbone.__dict__["forward"] = lambda *args, **kwargs: said
    try:
        yield
    finally:
        del backbone.__dict__["forward"]


def numbers(
    head: Head, hidden: Tensor, tokens: Tensor, *, temperature: float = 1.0, words: frozenset[str] = frozenset(), at_once: int = 256,
    others: Mapping[str, tuple[Head, Tensor]] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What is asked of the distributions at N positions, ``[N]`` float64 each, in chunks that the backward pass computes again.

    hidden: ``[N, H]``. tokens: ``[N]`` ids. temperature: logits are divided by it. words: further numbers, of ``entropy``, ``collision``
    (log of the sum of squared probabilities), ``kls:NAME`` and ``reverse_kls:NAME``. at_once: positions in one chunk. others: name ->
    head and hidden states ``[N, H]`` of a reference, without gradient.

    Returns ``log_probs`` and the words. Log-sum-exp in float32 at least (float64 for a model in float64).
    """
    names, others = sorted(words), dict(others or {})

    def piece(part: Tensor, ids: Tensor, *theirs: Tensor) -> tuple[Tensor, ...]:
        logits = _tempered(head(part), temperature)
        log_probs = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        if not names:
            return (log_probs.double(),)
        full = logits.log_softmax(-1)
        pairs = zip(others.items(), theirs, strict=True)
        compared = {name: _tempered(other(states), temperature).log_softmax(-1) for (name, (other, _)), states in pairs}
        return (log_probs.double(), *(_number(word, full, compared).double() for word in names))

    chunks = []
    for start in range(0, len(hidden), at_once):
        at = slice(start, start + at_once)
        inputs = (hidden[at], tokens[at], *(states[at] for _, states in others.values()))
        kept = torch.is_grad_enabled()
        chunks.append(checkpoint(piece, *inputs, use_reentrant=False, preserve_rng_state=False) if kept else piece(*inputs))
    if not chunks:
        return {name: hidden.new_zeros(0, dtype=torch.float64) for name in ("log_probs", *names)}
    columns = [torch.cat(values) for values in zip(*chunks, strict=True)]
    return dict(zip(("log_probs", *names), columns, strict=True))


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _number(word: str, full: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """One number of each distribution, from its log-probabilities ``[N, V]``; impossible tokens (-inf) count nothing."""
    if word == "collision":
        return (2 * full).logsumexp(-1)
    if word == "entropy":
        return -_expected(full, full)
    kind, _, name = word.partition(":")
    other = others[name]
    return _expected(full, full - other) if kind == "kls" else _expected(other, other - full)


def _expected(log_probs: Tensor, values: Tensor) -> Tensor:
    """``sum p v`` where tokens of probability 0 count nothing, in the value and in the gradient."""
    possible = log_probs > -torch.inf
    return (log_probs.exp() * torch.where(possible, values, 0.0)).sum(-1)
