"""Preference pairs of captions: the base's own ranked by their truth, the base's own corrected, and true ones corrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Natural, Seed
from mmalign.policies.transformers import transformers
from mmalign.records import Pair
from mmalign.types import UserError
from mmalign.worlds.digit_scenes.base import ANSWER, Model, digit_scenes
from mmalign.worlds.digit_scenes.judges import scene_truth, truth_of
from mmalign.worlds.digit_scenes.scenes import EXPECTED, caption, digit_scenes_prompts, mentions, well_formed

__all__ = ["digit_scenes_pairs"]

Kind = Literal["ranked", "corrected", "corrupted"]


def digit_scenes_pairs(
    *, kind: Kind = "ranked", model: Model = "qwen2_vl", reward: Callable[..., Tensor] | None = None, prompts: Count = 512,
    best_of: Count = 8, seed: Seed = 0, offset: Natural = 0,
) -> list[Pair]:  # fmt: skip
    """Pairs of captions of ``prompts`` training scenes, at most one of each scene, the same for one seed; first the better one.

    Args:
        kind: ``ranked``, the best and the worst of ``best_of`` samples of the base, by ``reward``. ``corrected``, the first sample that
            is wrong and the same caption mended: what is not there taken out, what is missing put in, all else as it was (segment
            corrections, as people made them for RLHF-V). ``corrupted``, the true caption and the same with what is expected beside it
            and is not there (or any absent digit); the base says nothing here.
        model: whose samples they are. reward: what ranks, ``scene_truth`` by default.
        prompts: training scenes. best_of: samples of each. offset: the first scene.

    Scenes without a difference to tell make no pair.

    Errors: UserError for another kind, and numbers out of range.
    """
    if kind not in ("ranked", "corrected", "corrupted") or prompts < 1 or best_of < 2:
        raise UserError(
            f"digit_scenes_pairs: got kind={kind!r}, prompts={prompts}, best_of={best_of}, takes ranked, corrected or corrupted; "
            "1 or more, and 2 or more"
        )
    requests = digit_scenes_prompts(count=prompts, offset=offset)
    rng = torch.Generator().manual_seed(seed)
    if kind == "corrupted":
        return [Pair(prompt, *_corrupted(truth_of(prompt), rng), 1.0, f"pair {offset + number}") for number, prompt in enumerate(requests)]
    policy: Any = transformers(*digit_scenes(model=model), max_completion=ANSWER)
    outputs = policy.sample(requests, best_of, rng).outputs
    rank, pairs = reward or scene_truth(), list[Pair]()
    for number, prompt in enumerate(requests):
        captions = outputs[number * best_of : (number + 1) * best_of]
        scores = rank(captions, [prompt] * best_of).tolist()
        if kind == "corrected":
            wrong = next((text for text in captions if well_formed(text) and set(mentions(text)) != set(truth_of(prompt))), None)
            if wrong is not None:
                pairs.append(Pair(prompt, caption(truth_of(prompt)), wrong, 1.0, f"pair {offset + number}"))
            continue
        best, worst = max(range(best_of), key=scores.__getitem__), min(range(best_of), key=scores.__getitem__)
        if scores[best] > scores[worst]:
            pairs.append(
                Pair(prompt, captions[best], captions[worst], 1.0, f"pair {offset + number}", scores=(scores[best], scores[worst]))
            )
    return pairs


def _corrupted(digits: tuple[int, ...], rng: torch.Generator) -> tuple[str, str]:
    """A true caption, and one with an invention."""
    absent = [digit for digit in range(10) if digit not in digits]
    expected = [EXPECTED[digit][0] for digit in digits if digit in EXPECTED and EXPECTED[digit][0] in absent]
    some = expected or absent
    return caption(digits), caption([*digits, some[int(torch.randint(len(some), (), generator=rng))]])
