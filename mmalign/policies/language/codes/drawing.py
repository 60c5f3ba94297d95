"""Sampling of the codes of images, behind shared prompts, the same for a seed whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.policies.language.codes.guided import GuidedFit, mixed, unprompted
from mmalign.policies.language.codes.layouts import Layout
from mmalign.policies.language.drawing.drawing import ALONE, Drawing, Voice, pick
from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.prefixes import Sequences

Using = Callable[[], AbstractContextManager[None]]


class Branch(NamedTuple):
    """Rows that go on behind their prompts, or behind none. cache: of what they have read. mask: ``[R, L]`` of it."""

    cache: Any
    mask: Tensor
    shift: Tensor


class Images(NamedTuple):
    """codes: ``[R, T]``. log_probs: ``[R, T]`` float64 of each as it was drawn, at the temperature, before anything was cut off."""

    codes: Tensor
    log_probs: Tensor


@torch.no_grad()
def draw(  # all that a draw depends on
    layout: Layout, prompts: Sequence[Tensor], which: Tensor, uniform: Tensor, drawing: Drawing, scale: float, *,
    voices: Sequence[Voice] = ALONE,
) -> Images:  # fmt: skip
    """Codes of images behind prompts. which: ``[R]`` the prompt of each row. uniform: ``[R, T]`` float64 in 0..1. scale: of guidance.

    voices: whose guided logits are mixed, as of ``language.drawing.draw``.
    """
    device, behind = which.device, [(list(prompts), which)]
    if scale != 1:
        empty, of = unprompted(layout, prompts)
        behind.append((empty, of.to(device)[which]))
    started = [[_started(layout, some, rows, voice) for some, rows in behind] for voice in voices]
    branches, states = [[branch for branch, _ in row] for row in started], [[state for _, state in row] for row in started]
    codes = torch.zeros((len(which), len(layout.places)), dtype=torch.int64, device=device)
    log_probs = torch.zeros(codes.shape, dtype=torch.float64, device=device)
    places = [*layout.places.tolist(), None]
    for step, (place, upcoming) in enumerate(pairwise(places)):
        codes[:, step], log_probs[:, step] = pick(_logits(layout, voices, states, scale), uniform[:, step], drawing)
        if upcoming is None:
            break
        tokens = layout.written(codes)[:, place:upcoming]
        for voice, row, own in zip(voices, branches, states, strict=True):
            with voice.using():
                for number, branch in enumerate(row):
                    mask = torch.cat([branch.mask, branch.mask.new_ones(tokens.shape)], dim=1)
                    own[number] = prefixes.follow(layout.backbone, branch.cache, mask, tokens, branch.shift)[:, -1]
                    row[number] = branch._replace(mask=mask)
    return Images(codes, log_probs)


def _started(layout: Layout, prompts: list[Tensor], which: Tensor, voice: Voice) -> tuple[Branch, Tensor]:
    """Rows behind their prompts, and the states ``[R, H]`` that the first code follows."""
    with voice.using():
        start = prefixes.prefill(layout.backbone, prompts, (), which.device)
    start.cache.batch_select_indices(which)
    return Branch(start.cache, start.mask[which], start.shift[which]), start.last[which]


def _logits(layout: Layout, voices: Sequence[Voice], states: list[list[Tensor]], scale: float) -> Tensor:
    logits = []
    for voice, own in zip(voices, states, strict=True):
        with voice.using():
            parts = [layout.logits(state) for state in own]
        logits.append(parts[0] if scale == 1 else mixed(parts, scale))
    return logits[0] if len(voices) == 1 else sum(voice.share * part.double() for voice, part in zip(voices, logits, strict=True))  # type: ignore[return-value]


@torch.no_grad()
def draw_forced(fit: GuidedFit, rows: Sequences, uniform: Tensor, drawing: Drawing) -> Images:
    """Codes of images of which all that is read is given, each behind the ones before it that are: ``rows.read [R, T]``, in one pass."""
    logits = fit.head(fit.states(rows).flatten(0, 1))
    codes, log_probs = pick(logits, uniform.flatten().to(logits.device), drawing)
    return Images(codes.view(uniform.shape).cpu(), log_probs.view(uniform.shape).cpu())
