"""A reward on what another model makes of an output: outputs are prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Count, Seed
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.completions import texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


@runtime_checkable
class Answering(Protocol):
    """What answers prompts: any policy."""

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> Any:
        """An output of each."""


def through(reward: Callable[..., Any], *, policy: Any, samples: Count = 1, seed: Seed = 0, call: dict[str, Any] | None = None) -> Scorer:
    """``reward`` of what ``policy`` answers to a completion, beside the prompt that the completion was made of.

    For a policy that writes prompts anew, x' for x: ``r(x, x') = mean_k reward(y_k, x)``, ``y_k`` of the other model's on x', which is
    frozen and may be of any kind (words, images). An empty completion has no score.

    Args:
        reward: of answers to the prompts as they were first.
        policy: the other model: anything with ``generate``.
        samples: K, answers to each.
        seed: of the answers, with the texts: the same prompt made of the same one is answered the same.
        call: keywords of the other model's ``generate``: ``temperature``, ``num_inference_steps``, ...

    Paper: P-Aligner: Enabling Pre-Alignment of Language Models via Principled Instruction Synthesis, arXiv 2508.04626 (*recalled*).

    Deviations: that paper searches instructions by such a score and trains on what it finds; here the score is a reward, for any method.

    Errors: UserError for what is no reward, and no policy.
    """
    if not callable(reward) or not isinstance(policy, Answering):
        raise UserError(f"through: got {type(reward).__name__}, policy={type(policy).__name__}, takes a reward, and a policy")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        rows = [(row, text) for row, text in enumerate(texts("through", outputs, prompts)) if text.strip()]
        scores = torch.full((samples, len(prompts)), torch.nan, dtype=torch.float64)
        if not rows:
            return scores[0]
        places = [row for row, _ in rows]
        asked, first = [text for _, text in rows], [prompts[row] for row in places]
        kept = {name: [values[row] for row in places] for name, values in accepted(reward, columns).items()}
        for number in range(samples):
            seeds = [_seed(seed, number, text) for text in asked]
            with torch.no_grad():
                answers = policy.generate(asked, seeds, **(call or {}))
            scores[number, places] = _one(reward(answers, first, **kept))
        return scores.mean(0)

    return Scorer("through", score, reads=columns_read(reward))


def _one(scores: Any) -> Tensor:
    if not isinstance(scores, Tensor):
        raise UserError(f"through.reward: answered a {type(scores).__name__}, takes one score of each row")
    return scores.double().cpu()


def _seed(seed: int, number: int, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {number} {text}".encode(), digest_size=4).digest(), "big") >> 1
