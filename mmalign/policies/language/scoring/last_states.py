"""What a language model holds of a row once it has read it: the hidden state behind its last token, or the mean of those behind each."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmalign.policies.language.models.prefixes import Sequences
from mmalign.policies.language.scoring.scorer import Scorer, batches, picked

__all__: list[str] = []  # no policy


def last_states(scorer: Scorer, rows: Sequences) -> Tensor:
    """``[R, H]`` float32: the state of the last layer at each row's last token, differentiable.

    A state stands at the token that it predicts, so the one that is wanted stands one place behind the row; which token is put there
    changes nothing, since none is read there.
    """
    longer = replace(rows, tokens=torch.nn.functional.pad(rows.tokens, (0, 1)), lengths=rows.lengths + 1)
    places, states = list[Tensor](), list[Tensor]()
    for part in batches(longer):
        sequences = picked(longer, part, int(longer.lengths[part].max()), scorer.device)
        places.append(part)
        states.append(scorer.hidden(sequences)[torch.arange(len(part)), sequences.lengths - 1].float())
    return torch.cat(states)[torch.cat(places).argsort().to(scorer.device)]


@torch.no_grad()
def mean_states(scorer: Scorer, rows: Sequences) -> Tensor:
    """``[R, H]`` float64: the mean of the last layer's states at a row's tokens, each read."""
    longer = replace(rows, tokens=torch.nn.functional.pad(rows.tokens, (0, 1)), lengths=rows.lengths + 1)
    places, means = list[Tensor](), list[Tensor]()
    for part in batches(longer):
        sequences = picked(longer, part, int(longer.lengths[part].max()), scorer.device)
        states = scorer.hidden(sequences).double()
        numbers = torch.arange(states.shape[1], device=states.device)
        inside = ((numbers >= 1) & (numbers < sequences.lengths.to(states.device)[:, None])).double()
        places.append(part)
        means.append((states * inside[..., None]).sum(1) / inside.sum(1, keepdim=True))
    return torch.cat(means)[torch.cat(places).argsort().to(scorer.device)]
