"""A language model that criticises an answer, or looks into it with tools, before it is asked for a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.policies.language.models.logits import LOG_PROBS
from mmalign.policies.language.scoring.completions import Completions
from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.language.scoring.last_states import last_states
from mmalign.policies.scorers.readers import LastToken
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import EVERY, Rollout, UserError

__all__ = ["ThinkingReader", "thinking"]

ASK = "How good is that answer? Think before you judge it."


def thinking(of: TransformersPolicy, *, ask: str = ASK) -> ThinkingReader:
    """The last token of a critique: what the model said of an answer, and what tools told it, stand behind the answer when it is scored.

    Outputs of records are conversations: the answer, somebody's turn that asks for a judgement, and what was said then, of the assistant's
    (a critique, calls of tools) and of tools. An output without these turns is asked about with ``ask``, and the model thinks by itself,
    by its likeliest words; with ``turns`` of its policy an environment answers what it calls.

    Two numbers stand behind the features: the mean cost in nats of a token that the assistant said after the answer, and of one that it was
    told. Takes the head ``thought``, and the method ``bradley_terry_thinking``.

    of: a language or vision-language model with a chat template. ask: the user's turn behind an answer.

    Paper: MM-RLHF, arXiv 2502.10391 (a critique, then a score); Tool-Augmented Reward Modeling (Themis), arXiv 2310.01045.

    Deviations: Themis' scores come from a token of their own behind its rationale; here the last token's state is read.

    Errors: UserError for a model without a chat template; RefusedRow as of what reads.
    """
    if not isinstance(of, TransformersPolicy) or not of.chat.template:
        got = "a model without a chat template" if isinstance(of, TransformersPolicy) else f"a {type(of).__name__}"
        raise UserError(f"policy.of.of: got {got}, takes one that transformers makes, which can be asked for a second turn")
    return ThinkingReader(of, ask=ask)


@dataclass(frozen=True)
class Thought:
    """completions: rows as token ids. said, told: ``[B, T]`` bool, tokens after the answer, of the assistant's and of others."""

    completions: Completions
    said: Tensor
    told: Tensor

    def take(self, rows: Tensor) -> Thought:
        return Thought(self.completions.take(rows), self.said[rows], self.told[rows])

    @staticmethod
    def join(parts: Sequence[Thought]) -> Thought:
        width = max(part.said.shape[1] for part in parts)
        said, told = (
            torch.cat([torch.nn.functional.pad(getattr(part, name), (0, width - part.said.shape[1])) for part in parts])
            for name in ("said", "told")
        )
        return Thought(Completions.join([part.completions for part in parts]), said, told)


class ThinkingReader(LastToken):
    """See ``thinking``."""

    predicts = True

    def __init__(self, of: TransformersPolicy, *, ask: str):
        super().__init__(of)
        self.ask, self.width = ask, self.width + 2

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """Token ids, and which of them were said or told after the answer. Errors: RefusedRow."""
        whole = list(outputs)
        places = range(len(prompts))[part]
        for place, turns in zip(places, self._thought([prompts[row] for row in places], [whole[row] for row in places]), strict=True):
            whole[place] = turns
        rollout = self.of.encode(prompts, whole, group, rng or torch.Generator(), part=part)
        live, inside = rollout.mask, torch.arange(rollout.mask.shape[1]) < rollout.held.lengths[:, None]
        begins = live & ~torch.nn.functional.pad(live, (1, 0))[:, :-1]
        later = begins.cumsum(1) > 1  # from the second turn of the assistant's on
        return replace(rollout, held=Thought(rollout.held, live & later, inside & ~live & later))

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, H + 2]`` float32, differentiable with respect to the model's parameters; a row that said or was told nothing costs 0."""
        held: Thought = rollout.held
        given, said, told = sequences(held.completions, rows), held.said[rows], held.told[rows]
        states = last_states(self.of.scorer, given)
        log_probs = self.of.scorer(given, said | told)[LOG_PROBS]
        costs = [-(log_probs * cells).sum(1) / cells.sum(1).clamp(min=1) for cells in (said, told)]
        return torch.cat([states, torch.stack(costs, 1).to(states)], 1)

    def _thought(self, prompts: Sequence[Any], outputs: Sequence[Any]) -> list[list[Mapping[str, Any]]]:
        """Every output as turns that end in a thought; those that have none yet are asked for it."""
        talks: list[list[Mapping[str, Any]]] = [
            [{"role": "assistant", "content": one}] if isinstance(one, str) else list(one) for one in outputs
        ]
        silent = [place for place, turns in enumerate(talks) if len(turns) == 1]
        if silent:
            for place in silent:
                talks[place].append({"role": "user", "content": self.ask})
            asked = [[*self._turns(prompts[place]), *talks[place]] for place in silent]
            with torch.no_grad():
                written = self.of.generate(asked, [0] * len(silent), top_k=1)
            for place, words in zip(silent, written, strict=True):
                talks[place] += [{"role": "assistant", "content": words}] if isinstance(words, str) else list(words)
        return talks

    @staticmethod
    def _turns(prompt: Any) -> list[Mapping[str, Any]]:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
