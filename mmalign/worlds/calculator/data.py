"""The sums, and how they are talked about: what the base has read."""

from __future__ import annotations

import random

from mmalign.arguments.ranges import Count, Natural
from mmalign.types import Prompt, UserError

__all__ = ["calculator_prompts"]

FACTORS, ADDED = (3, 19), (10, 99)
LARGEST = FACTORS[1] ** 2 + ADDED[1]
CALL, END_CALL = "<calculate>", "</calculate>"
GUESSES, WRONG_CALLS, STOPS, FORGETS = 0.4, 0.2, 0.3, 0.3
Turn = dict[str, str]


def calculator_prompts(*, count: Count = 64, offset: Natural = 0) -> list[Prompt]:
    """Sums like ``13 * 14 + 87`` with the column ``answer``, each once, in an order that is always the same.

    Their column ``hint`` has the product, and then the sum behind it, for ``data.hinted``.

    count: how many. offset: number of the first, from 0.

    Errors: UserError where there are not so many.

    Examples:
        >>> prompt, = mm.worlds.calculator_prompts(count=1)
        >>> prompt.content, prompt.columns["answer"]
        ('15 * 16 + 15', '255')
    """
    most = 10_000
    if count < 1 or offset < 0 or offset + count > most:
        raise UserError(f"calculator_prompts: got count={count}, offset={offset}, takes 1 or more, 0 or more, together at most {most}")
    rng, sums = random.Random(0), dict[str, tuple[int, int]]()
    while len(sums) < offset + count:
        a, b, c = _numbers(rng)
        sums[f"{a} * {b} + {c}"] = (a * b, a * b + c)
    return [
        Prompt(text, {"answer": str(total), "hint": [str(product), f"{product} {total}"]})
        for text, (product, total) in list(sums.items())[offset:]
    ]


def conversation(rng: random.Random) -> list[Turn]:
    """A sum as the base has seen people deal with it: badly, more often than not.

    They guess (``GUESSES``), ask for something else (``WRONG_CALLS``, of each call), take the product for the answer (``STOPS``), or have
    forgotten the last result when they are to say it (``FORGETS``). What is left, .6 * .8^2 * .7^2 = .19, is right.
    """
    a, b, c = _numbers(rng)
    turns = [_said("user", f"{a} * {b} + {c}")]
    if rng.random() < GUESSES:
        return [*turns, _said("assistant", _guess(rng))]
    asked, result = _call(rng, (a, "*", b), (b, "+", c))
    turns += [_said("assistant", f"{CALL} {asked} {END_CALL}"), _said("tool", str(result))]
    if rng.random() < STOPS:
        return [*turns, _said("assistant", str(result))]
    asked, result = _call(rng, (result, "+", c), (a, "+", c))
    turns += [_said("assistant", f"{CALL} {asked} {END_CALL}"), _said("tool", str(result))]
    return [*turns, _said("assistant", _guess(rng) if rng.random() < FORGETS else str(result))]


def _numbers(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(*FACTORS), rng.randint(*FACTORS), rng.randint(*ADDED)


def _call(rng: random.Random, right: tuple[int, str, int], wrong: tuple[int, str, int]) -> tuple[str, int]:
    """An operation and what comes of it."""
    one, sign, other = wrong if rng.random() < WRONG_CALLS else right
    return f"{one} {sign} {other}", one * other if sign == "*" else one + other


def _guess(rng: random.Random) -> str:
    return str(rng.randint(FACTORS[0] ** 2 + ADDED[0], LARGEST))


def _said(role: str, content: str) -> Turn:
    return {"role": role, "content": content}
