"""Which of the fast ways of computing hold for a model: tried on a tiny batch before they are trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.logits import LOG_PROBS, Head, matrix_head, numbers_of, own_head
from mmalign.types import UserError

ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.02}
"""Nats that one log-probability may differ by between two ways of computing it, by the model's type (norms of many
classes are computed in float32 in float64 models too)."""


class Running(Protocol):
    """How tokens are scored: states of rows, and logits of states. ``alone``: each row with its own prompt."""

    @property
    def device(self) -> torch.device: ...

    @property
    def backbone(self) -> nn.Module: ...

    @property
    def head(self) -> Head: ...

    def states(self, rows: prefixes.Sequences) -> Tensor: ...

    def alone(self) -> Running: ...


@dataclass(frozen=True)
class Fit:
    """How a model is run: hidden states by ``backbone``, logits by ``head``; ``shared`` prompts or not. remarks: what does not hold.

    device: where its weights are.
    """

    backbone: nn.Module
    head: Head
    shared: bool
    remarks: tuple[str, ...]
    device: torch.device

    def states(self, rows: prefixes.Sequences) -> Tensor:
        """Hidden states ``[R, T, H]`` of rows, wherever they are, as ``prefixes.run`` has them."""
        return prefixes.run(self.backbone, prefixes.moved(rows, self.device), shared=self.shared)

    def alone(self) -> Fit:
        """The same, each row with its own prompt."""
        return replace(self, shared=False)


class Whole(nn.Module):
    """A model whose "hidden states" are its logits: slow in memory, and never wrong."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.config = model.config
        self.__dict__["model"] = model  # not a submodule: its parameters have one name only

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        """As the model's own, without ``position_ids``, which it finds out itself where it wants them."""
        output = self.__dict__["model"](input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        return SimpleNamespace(last_hidden_state=output.logits, past_key_values=getattr(output, "past_key_values", None))


def fit(model: nn.Module, *, shared: bool, trained: Sequence[Tensor], example: prefixes.Sequences | None = None) -> Fit:
    """The fastest way that gives the model's own log-probabilities, and with shared prompts the same gradient.

    trained: some parameters whose gradient is compared. example: rows to try; made up by default. Errors: UserError for a model
    that does not answer at all, and for one whose words see those behind them.
    """
    name, rows, p = type(model).__name__, example or made_up(model, ()), next(model.parameters())
    allowed, remarks = ROUNDING.get(p.dtype, 1e-4), list[str]()
    whole, base = Whole(model), cast(nn.Module, model.base_model)
    try:
        with torch.no_grad():
            truth = _scores(whole, lambda logits: logits, rows, shared=False)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise UserError(
            f"policy.model: {name} does not answer a tiny batch: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    if _sees_ahead(whole, rows, truth, allowed):
        raise UserError(
            f"policy.model: {name} sees words that follow (attention both ways), so it does not draw what it would score; "
            "takes a causal model"
        )
    backbone: nn.Module = whole
    head: Head = lambda logits: logits  # noqa: E731
    candidates: tuple[Head | None, ...] = (matrix_head(model), own_head(model))
    for candidate in candidates:
        if candidate is not None and _agrees(base, candidate, rows, truth, allowed):
            backbone, head = base, candidate
            break
    else:
        remarks.append(f"{name}: its head cannot be run apart, so the logits of whole batches are held")
    if getattr(model.config, "prefix_lm", False):
        remarks.append(f"{name}: was made to see prompts both ways (prefix_lm), and reads them word by word here, as its generate does")
    if shared and not _shares(backbone, head, rows, truth, allowed, trained):
        remarks.append(f"{name}: its cache cannot be shared with its gradient, so prompts are computed once for every row")
        shared = False
    return Fit(backbone, head, shared, tuple(remarks), p.device)


def made_up(model: Any, never: Sequence[int], examples: Sequence[tuple[Tensor, Mapping[str, Tensor]]] = ()) -> prefixes.Sequences:
    """Two prompts and three completions of several lengths, with ids from the first thousand but those that are ``never`` said.

    examples: further prompts with their inputs (images), each with two completions.
    """
    rng, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    most = min(1000, int(model.get_input_embeddings().weight.shape[0]))
    some = torch.tensor(sorted(set(range(most)) - set(never)))
    pick = lambda *shape: some[torch.randint(len(some), shape, generator=rng)]  # noqa: E731
    prompts = [pick(3), pick(7), *(ids for ids, _ in examples)]
    which = [0, 0, 1, *(place for place in range(2, len(prompts)) for _ in range(2))]
    lengths = [4, 2, 3, *(4, 2) * len(examples)]
    extras = [{}, {}, *({name: value.to(device) for name, value in inputs.items()} for _, inputs in examples)] if examples else []
    on = {"device": device}
    return prefixes.Sequences(prompts, torch.tensor(which, **on), pick(len(which), 4).to(device), torch.tensor(lengths, **on), extras)


def _sees_ahead(whole: nn.Module, rows: prefixes.Sequences, truth: Tensor, allowed: float) -> bool:
    """Whether log-probabilities ``truth`` of words change with the last word of their row: drawn before it, they have not seen it."""
    last = rows.lengths.unsqueeze(1) - 1 - torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    others = torch.where(last == 0, rows.tokens.roll(1, 0).roll(1, 1), rows.tokens)
    with torch.no_grad():
        changed = _scores(whole, lambda logits: logits, replace(rows, tokens=others), shared=False)
    return bool((changed - truth).abs()[last[last >= 0] > 0].max() > allowed)


def _scores(backbone: nn.Module, head: Head, rows: prefixes.Sequences, *, shared: bool) -> Tensor:
    real = torch.arange(rows.tokens.shape[1], device=rows.tokens.device) < rows.lengths.unsqueeze(1)
    return numbers_of(head, prefixes.run(backbone, rows, shared=shared)[real], rows.tokens[real])[LOG_PROBS]


def _agrees(backbone: nn.Module, head: Head, rows: prefixes.Sequences, truth: Tensor, allowed: float) -> bool:
    try:
        with torch.no_grad():
            scores = _scores(backbone, head, rows, shared=False)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return False
    return bool((scores - truth).abs().max() <= allowed)


def _shares(backbone: nn.Module, head: Head, rows: prefixes.Sequences, truth: Tensor, allowed: float, trained: Sequence[Tensor]) -> bool:
    try:
        with torch.enable_grad():
            scores = _scores(backbone, head, rows, shared=True)
            if not bool((scores - truth).abs().max() <= allowed):
                return False
            ours = torch.autograd.grad(scores.sum(), list(trained), allow_unused=True)
            theirs = torch.autograd.grad(_scores(backbone, head, rows, shared=False).sum(), list(trained), allow_unused=True)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError):  # whatever a cache that cannot share says of it
        return False
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None or b is not None]
    if any(a is None or b is None for a, b in pairs):
        return False
    distance = sum(float((a - b).double().norm() ** 2) for a, b in pairs) ** 0.5
    return distance <= 20 * allowed * max(1.0, sum(float(b.double().norm() ** 2) for _, b in pairs) ** 0.5)
