"""Prompts that a language model edits, so that they do not fit their image any more, as a file that ``data.edited`` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmalign.arguments.ranges import Count, Seed
from mmalign.distributed.team import joined
from mmalign.files import write_text
from mmalign.training.seeds import stream
from mmalign.types import Policy, UserError, contents

__all__ = ["make_edits"]

Way = Literal["content", "attribute", "spatial", "context"]
ASKS: dict[str, str] = {
    "content": "replace one object or animal by another one",
    "attribute": "change one attribute, such as a colour, a number, a size or a material",
    "spatial": "change where things are to each other",
    "context": "change the place, the time or the style",
}
ORDER = (
    "Rewrite this description of a picture so that it no longer describes it: {change}. Change nothing else, and keep its length. "
    "Answer with the rewritten description alone.\n\n{prompt}"
)


def make_edits(  # what a command may be told
    policy: Policy,
    prompts: Sequence[Any],
    *,
    out: str,
    ways: Sequence[Way] = ("content", "attribute", "spatial", "context"),
    order: str = ORDER,
    longest: Count = 2,
    prompts_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, int]:
    """Writes each prompt with what a language model makes of it in several ways; returns counts.

    Args:
        policy: a language model that edits. prompts: texts, each edited once in every way.
        out: the file, JSON lines of ``prompt, edited``; it appears whole or not at all.
        ways: what is changed: ``content``, ``attribute``, ``spatial`` relations, or ``context``.
        order: what the model is told, with ``{change}`` and ``{prompt}`` in it.
        longest: an answer of more than so many times the prompt's words is left out.
        prompts_at_once: prompts that are edited at once. seed: of the sampling.

    An answer that says what the prompt says, nothing, or too much is left out, and so is a prompt without any other. Counts: ``prompts``
    (written), ``edited``, ``left_out`` (answers).

    Paper: Free Lunch Alignment of Text-to-Image Diffusion Models without Preference Image Pairs, https://arxiv.org/abs/2509.25771; its
    four kinds, in words of ours.

    Errors: UserError for a file that is there already, an unknown way, an order without its two places, and a policy that does not answer
    in words.
    """
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    texts = [str(content) for content in contents(list(prompts))]
    strange = next((way for way in ways if way not in ASKS), None)
    if strange is not None or not ways:
        raise UserError(f"ways: got {strange!r}, takes {', '.join(ASKS)}")
    if any(place not in order for place in ("{change}", "{prompt}")):
        raise UserError("order: takes a text with {change} and {prompt} in it")
    if joined().size > 1:
        raise UserError("--processes: got several, edits are made by one; takes 1")
    counts, lines = {"prompts": 0, "edited": 0, "left_out": 0}, list[str]()
    for start in range(0, len(texts), prompts_at_once):
        some = texts[start : start + prompts_at_once]
        orders = [order.replace("{change}", ASKS[way]).replace("{prompt}", text) for text in some for way in ways]
        answers = policy.sample(orders, 1, stream(seed, start, "edits")).outputs
        if not isinstance(answers, list):
            raise UserError("policy: does not answer in words, and edits are words; takes a language model")
        for place, text in enumerate(some):
            edits = [" ".join(answer.split()) for answer in answers[place * len(ways) : (place + 1) * len(ways)]]
            fitting = list(dict.fromkeys(edit for edit in edits if _differs(edit, text, longest)))
            counts["edited"] += len(fitting)
            counts["left_out"] += len(edits) - len(fitting)
            if fitting:
                counts["prompts"] += 1
                lines.append(json.dumps({"prompt": text, "edited": fitting}, ensure_ascii=False) + "\n")
    write_text(Path(out), "".join(lines))
    return counts


def _differs(edit: str, text: str, longest: int) -> bool:
    return bool(edit) and edit.casefold() != " ".join(text.split()).casefold() and len(edit.split()) <= longest * max(len(text.split()), 1)
