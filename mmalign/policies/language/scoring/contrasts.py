"""Other prompts for the same completions: under another system turn, with other pictures, of another row, or that show an answer.

A contrast whose words hold ``{prompt}``, ``{own}`` or ``{other}`` is a prompt of that wording, made anew for each row: ``{prompt}`` is what
was asked, ``{own}`` the row's answer and ``{other}`` that of the row beside it in its pair. So an answer is scored as the improvement of
another (``srpo``), and under changed instructions (``mapl``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.conversations import question
from mmalign.policies.language.models.prefixes import Sequences
from mmalign.policies.language.prompts.ablation import Ablation
from mmalign.policies.language.prompts.budget import Room
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.shown import conversation
from mmalign.policies.language.prompts.vision import inputs_of
from mmalign.policies.language.scoring.completions import Completions
from mmalign.types import UserError

PLACES = re.compile(r"\{(?:prompt|own|other)\}")


class Others(NamedTuple):
    """encoded: P prompts. which: ``[R]`` the one of each row that it is for."""

    encoded: Sequence[Prompt]
    which: Tensor


def others(  # all that a contrast depends on
    completions: Completions, name: str, *, rows: tuple[Tensor, Tensor], systems: Mapping[str, str], ablation: Ablation, room: Room
) -> Others:
    """The prompts of a contrast.

    rows: the numbers ``[R]`` of those that it is for, and their groups ``[R]``.

    name: ``mismatched``, the next other prompt of the step, with its images; ``ablated``, the own prompt whose images and videos are
    replaced (``ablation``; a prompt without any stays as it is); a name of ``systems``, the own prompt under that system turn, or in that
    wording. Errors: UserError for other names, rows of one prompt, a model that does not see, and rows without a partner.
    """
    own = completions.which[rows[0]]
    if name == "mismatched":
        following = completions.following[own]
        if bool((following == own).any()):
            raise UserError("contrast mismatched: got rows of one prompt, takes two or more in a step")
        return Others(completions.encoded, following)
    if worded(systems.get(name)):
        return _shown(completions, str(systems[name]), rows, room)
    contrasts = completions.contrasts
    if name not in contrasts:
        sources = completions.sources
        contrasts[name] = _ablated(completions, ablation, room) if name == "ablated" else _under_system(sources, name, systems, room)
    return Others(contrasts[name], own)


def _ablated(completions: Completions, ablation: Ablation, room: Room) -> list[Prompt]:
    vision = room.chat.vision
    if vision is None:
        raise UserError("contrast ablated: this model reads words alone, takes one that sees")
    return [vision.changed(prompt, ablation) for prompt in completions.encoded]


def worded(words: Any) -> bool:
    """Whether a contrast's words are a prompt's, and no system turn."""
    return isinstance(words, str) and PLACES.search(words) is not None


def _shown(completions: Completions, words: str, rows: tuple[Tensor, Tensor], room: Room) -> Others:
    """A prompt for each row that shows its answer, or its partner's."""
    numbers, group = rows
    if "{other}" in words and (len(numbers) % 2 or not torch.equal(group[::2], group[1::2])):
        raise UserError("policy.contrasts: {other} got rows that do not stand in pairs of one prompt, takes a method of pairs")
    lines = zip(completions.tokens[numbers].tolist(), completions.lengths[numbers].tolist(), strict=True)
    answers = [room.chat.text(line[:length]) for line, length in lines]
    prompts = []
    for place, number in enumerate(numbers.tolist()):
        source = completions.sources[int(completions.which[number])]
        known = {"{prompt}": question(source), "{own}": answers[place], "{other}": answers[min(place ^ 1, len(answers) - 1)]}
        asked = PLACES.sub(lambda match, known=known: known[match[0]], words)  # type: ignore[misc]
        prompts.append(room.prompt(_reworded(source, asked), number))
    return Others(prompts, torch.arange(len(numbers)))


def _reworded(source: Any, words: str) -> Any:
    """A prompt whose last words of the user's are others; its pictures and earlier turns stay."""
    if isinstance(source, str):
        return words
    place = max(number for number, turn in enumerate(source) if turn.get("role") == "user")
    content = source[place].get("content")
    media = [] if isinstance(content, str) else [part for part in content if part.get("type") != "text"]
    turn = {**source[place], "content": [*media, {"type": "text", "text": words}] if media else words}
    return [*source[:place], turn, *source[place + 1 :]]


def _under_system(sources: Sequence[Any], name: str, systems: Mapping[str, str], room: Room) -> list[Prompt]:
    if name not in systems:
        names = ", ".join(sorted(systems)) or "none"
        raise UserError(f"policy.contrasts: the method needs {name!r}, got {names}; takes its system turn")
    return [room.prompt(prompt, number, system=systems[name]) for number, prompt in enumerate(sources)]


def sequences(held: Completions, rows: Tensor, behind: Others | None = None) -> Sequences:
    """Some rows as token ids; behind other prompts, where they are given."""
    encoded, which = behind or Others(held.encoded, held.which[rows])
    ids = held.prompts if behind is None else [torch.tensor(prompt.ids) for prompt in encoded]
    extras = held.extras if behind is None else inputs_of(held.vision, encoded)
    read, allowed = (None if table is None else table[rows] for table in (held.read, held.allowed))
    inside = [_inside(held, row, encoded[place]) for row, place in zip(rows.tolist(), which.tolist(), strict=True)] if held.shown else []
    return Sequences(ids, which, held.tokens[rows], held.lengths[rows], extras, read, allowed, inside if any(inside) else ())


def _inside(held: Completions, row: int, prompt: Prompt) -> Mapping[str, Tensor]:
    """Further inputs of a whole row in which pictures are shown, behind a prompt; nothing where there are none."""
    if not held.shown[row] or held.vision is None:
        return {}
    return held.vision.inputs(conversation(prompt, held.tokens[row, : held.lengths[row]].tolist(), held.shown[row]))
