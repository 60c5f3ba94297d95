"""Completions read through what the policy itself would have said: each token's embedding mixed with that of its own likeliest one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.logits import LOG_PROBS, numbers_of
from mmalign.policies.language.scoring.scorer import Scorer, picked
from mmalign.types import UserError


def blended(score: Scorer, embedding: nn.Module, rows: prefixes.Sequences, cells: Tensor, *, share: float) -> Tensor:
    """Log-probabilities ``[R, T]`` float64 on the CPU of given completions, 0 outside ``cells``, where the model reads a mixture.

    ``e_t = (1 - share) e(y_t) + share e(y'_t)`` with ``y'_t`` the likeliest token after ``y_<t``, at the tokens of ``cells [R, T]``; e is
    the model's own embedding, with gradient. All rows run at once, each with its prompt. Errors: UserError for a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"policy.contrasts.blended: got {share}, takes a share of 0 to 1")
    sequences, inside = picked(rows, torch.arange(len(rows)), cells.shape[1], score.device), cells.to(score.device)
    with torch.no_grad():
        hidden = prefixes.run(score.fit.backbone, sequences, shared=False)
        guessed = torch.cat([_likeliest(score, part) for part in hidden.flatten(0, 1).split(score.at_once)]).view(inside.shape)
    with _reading(embedding, sequences, torch.where(inside, guessed, sequences.tokens), share):
        hidden = prefixes.run(score.fit.backbone, sequences, shared=False)
    settings: dict[str, Any] = {"temperature": score.temperature, "at_once": score.at_once, "others": {}, "never": score.never}
    settings["allowed"] = None if sequences.allowed is None else sequences.allowed[inside]
    log_probs = numbers_of(score.fit.head, hidden[inside], sequences.tokens[inside], **settings)[LOG_PROBS]
    return torch.zeros(cells.shape, dtype=torch.float64).index_put(tuple(cells.nonzero().T), log_probs.cpu())


def _likeliest(score: Scorer, hidden: Tensor) -> Tensor:
    logits = score.fit.head(hidden)
    return (logits if score.never is None else logits.index_fill(-1, score.never, -torch.inf)).argmax(-1)


@contextmanager
def _reading(embedding: nn.Module, rows: prefixes.Sequences, instead: Tensor, share: float) -> Iterator[None]:
    """While the block lasts, the embedding of the rows' completions is mixed with that of the tokens ``instead [R, T]``."""
    inside = False

    def mix(own: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        nonlocal inside
        if inside:
            return None
        ids = args[0].clone()
        for row, (which, length) in enumerate(zip(rows.which.tolist(), rows.lengths.tolist(), strict=True)):
            size = len(rows.prompts[which])
            ids[row, size : size + length] = instead[row, :length]
        inside = True
        try:
            other = own(ids)
        finally:
            inside = False
        return (1 - share) * output + share * other

    with embedding.register_forward_hook(mix):
        yield
