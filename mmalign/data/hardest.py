"""The prompts that a model is worst at, by scores from before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from mmalign.arguments.ranges import Finite, Size
from mmalign.conversations import known_by
from mmalign.reference_scores import read_reference
from mmalign.types import Prompt, UserError, contents


def hardest(
    of: Sequence[str | Prompt], *, reference: str, keep: Size, reward: str | None = None, above: Finite | None = None
) -> list[str | Prompt]:
    """The prompts with the lowest mean score of the reference model's samples, in the order in which they come.

    of: prompts, such as ``{use: prompts, path: ...}``. reference, reward: a file that the recipe ``calibrate`` has written with the model
    that training starts from, and which of its rewards (the only one, where it has one). keep: how many are kept, 1 or more; ties go to
    those that come first. above: prompts whose mean is not above it are left out: a group that is always wrong teaches nothing.

    Paper: BLEUBERI, https://arxiv.org/abs/2505.11080: the 5,000 prompts with the lowest BLEU of one sample each.

    Errors: UserError for prompts that the file has no score of, and where fewer than ``keep`` are left.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/reference.jsonl"
        ...     with open(file, "w") as lines:
        ...         _ = lines.write('{"prompt": "a", "rewards": {"bleu": [0.5]}}\\n{"prompt": "b", "rewards": {"bleu": [0.1, 0.2]}}\\n')
        ...     hardest(["a", "b"], reference=file, keep=1)
        ['b']
    """
    if keep < 1:
        raise UserError(f"hardest.keep: got {keep}, takes 1 or more prompts")
    scores = read_reference("hardest", reference, reward)
    means = [fmean(scores.get(known_by(prompt)) or [math.nan]) for prompt in contents(of)]
    if unknown := sum(map(math.isnan, means)):
        raise UserError(
            f"hardest.reference: {reference} has no score of {unknown} of {len(means)} prompts; takes one that calibrate wrote of them"
        )
    left = sorted((row for row, mean in enumerate(means) if above is None or mean > above), key=lambda row: means[row])
    if len(left) < keep:
        raise UserError(f"hardest.keep: got {keep}, and {len(left)} of {len(means)} prompts are left")
    return [of[row] for row in sorted(left[:keep])]
