"""A reward on what came of an answer, and not on how it sounds."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Count, Seed
from mmalign.arguments.reads import columns_read
from mmalign.conversations import told_apart_by
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def hindsight(judge: Callable[..., Any], *, simulator: Callable[..., Any], samples: Count = 1, seed: Seed = 0) -> Scorer:
    """``r(x, y) = mean_k U(x, y, o_k)``: what a judge says of the outcomes ``o_k`` that a simulator draws for an answer.

    A person who is asked at once rewards what sounds good; one who has lived with an answer rewards what came of it. The simulator is an
    environment, ``(conversations) -> replies``: what the user does and meets after the answer. The judge is asked about the outcome, as the
    output, behind the whole conversation, as the prompt. A conversation whose simulator has nothing to say has no score.

    Args:
        judge: a reward of outcomes, with whatever columns it reads.
        simulator: the environment; one that takes ``seeds`` gets a number for each conversation and sample.
        samples: K, outcomes of each answer.
        seed: of the outcomes, with the conversations.

    Paper: RLHS: Mitigating Misalignment in RLHF with Hindsight Simulation, arXiv 2501.08617 (*recalled*).

    Deviations: the paper has a language model play both the user and the judge; here they are whatever is named.

    Errors: UserError for what is no judge, no simulator, or a simulator that gives another number of outcomes.
    """
    if not callable(judge) or not callable(simulator):
        raise UserError(f"hindsight: got {type(judge).__name__}, simulator={type(simulator).__name__}, takes a reward, and an environment")
    if getattr(simulator, "awaits", False):
        raise UserError("hindsight.simulator: got no model of its own, takes a policy or a server")
    seeded = "seeds" in inspect.signature(simulator).parameters

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        talks = [_talk(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
        scores = torch.full((samples, len(prompts)), torch.nan, dtype=torch.float64)
        known = accepted(judge, columns)
        for number in range(samples):
            given = {"seeds": [_seed(seed, number, talk) for talk in talks]} if seeded else {}
            outcomes = simulator(talks, **given)
            if len(outcomes) != len(talks):
                raise UserError(f"hindsight.simulator: gave {len(outcomes)} outcomes of {len(talks)} answers, takes one of each")
            rows = [row for row, outcome in enumerate(outcomes) if outcome]
            kept = {name: [values[row] for row in rows] for name, values in known.items()}
            if rows:
                told = judge([_words(outcomes[row]) for row in rows], [talks[row] for row in rows], **kept)
                scores[number, rows] = torch.as_tensor(told, dtype=torch.float64).cpu()
        return scores.mean(0)

    return Scorer("hindsight", score, reads=columns_read(judge))


def _talk(prompt: Any, output: Any) -> list[Any]:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*asked, *([{"role": "assistant", "content": output}] if isinstance(output, str) else output)]


def _words(outcome: Any) -> str:
    """An outcome as a text: of turns, what they say."""
    turns = [outcome] if not isinstance(outcome, (list, tuple)) else outcome
    return "\n".join(turn if isinstance(turn, str) else str(turn["content"]) for turn in turns)


def _seed(seed: int, number: int, talk: list[Any]) -> int:
    name = json.dumps([seed, number, told_apart_by(talk)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
