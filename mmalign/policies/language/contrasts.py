"""Other prompts for the same completions: under another system turn, with other pictures, of another row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.policies.language.ablation import Ablation
from mmalign.policies.language.budget import Room
from mmalign.policies.language.completions import Completions
from mmalign.policies.language.prefixes import Sequences
from mmalign.policies.language.vision import Prompt, inputs_of
from mmalign.types import UserError


class Others(NamedTuple):
    """prompts: ids of each, which: ``[B]`` the one of each row, extras: further inputs of each; as in ``prefixes.Sequences``."""

    prompts: Sequence[Tensor]
    which: Tensor
    extras: Sequence[Mapping[str, Tensor]]


def others(completions: Completions, name: str, *, systems: Mapping[str, str], ablation: Ablation, room: Room) -> Others:
    """The prompts of a contrast.

    name: ``mismatched``, the next other prompt of the step, with its images; ``ablated``, the own prompt whose images and videos are
    replaced (``ablation``; a prompt without any stays as it is); a name of ``systems``, the own prompt under that system turn. Errors:
    UserError for other names, rows of one prompt, a step without any image.
    """
    if name == "mismatched":
        following = completions.following[completions.which]
        if bool((following == completions.which).any()):
            raise UserError("contrast mismatched: got rows of one prompt, takes two or more in a step")
        return Others(completions.prompts, following, completions.extras)
    contrasts = completions.contrasts
    if name not in contrasts:
        sources = completions.sources
        contrasts[name] = _ablated(completions, ablation, room) if name == "ablated" else _under_system(sources, name, systems, room)
    return Others([torch.tensor(prompt.ids) for prompt in contrasts[name]], completions.which, inputs_of(room.chat.vision, contrasts[name]))


def _ablated(completions: Completions, ablation: Ablation, room: Room) -> list[Prompt]:
    vision = room.chat.vision
    if vision is None or not completions.pictured:
        raise UserError("contrast ablated: got a step without any image or video, takes prompts of which some have one")
    return [vision.changed(prompt, ablation) for prompt in completions.encoded]


def _under_system(sources: Sequence[Any], name: str, systems: Mapping[str, str], room: Room) -> list[Prompt]:
    if name not in systems:
        names = ", ".join(sorted(systems)) or "none"
        raise UserError(f"policy.contrasts: the method needs {name!r}, got {names}; takes its system turn")
    return [room.prompt(prompt, number, system=systems[name]) for number, prompt in enumerate(sources)]


def sequences(held: Completions, rows: Tensor, behind: Others | None = None) -> Sequences:
    """Some rows as token ids; behind other prompts, where they are given."""
    behind = behind or Others(held.prompts, held.which, held.extras)
    read, allowed = (None if table is None else table[rows] for table in (held.read, held.allowed))
    return Sequences(behind.prompts, behind.which[rows], held.tokens[rows], held.lengths[rows], behind.extras, read, allowed)
