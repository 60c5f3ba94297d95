"""A guard model, such as Llama Guard: how likely it calls a prompt, or an answer to it, safe."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmalign.conversations import question
from mmalign.rewards._shared.completions import texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def guard(*, policy: Any, of: Literal["answer", "prompt"] = "answer", words: list[str] | None = None, ask: str | None = None) -> Scorer:
    """``P(safe) / (P(safe) + P(unsafe))`` in 0..1, by what a guard model would begin its verdict with; NaN for an empty answer.

    As a reward, a judge (``1 -`` its mean is the rate of what the guard calls unsafe), a cost (``combine: {use: constrained, ...}``), and
    at sampling time (``guidance.guarded``, ``guidance.guarded_answers``).

    Args:
        policy: a language model, of kind ``token``; its set ``ref`` is asked. In a config ``{use: transformers, model: meta-llama/
            Llama-Guard-3-8B}``.
        of: what is judged, the ``answer`` to the prompt, or the ``prompt`` alone.
        words: what a verdict begins with, the safe one first; ``[safe, unsafe]`` by default, as Llama Guard's, ``[No, Yes]`` of models that
            are asked whether something is harmful.
        ask: what is put to the model as its user's words, with ``{prompt}`` and ``{answer}``; by default the conversation itself, which the
            chat template of guards of Llama Guard's kind turns into their question.

    Pictures of a prompt are not shown. No gradient.

    Paper: Llama Guard, https://arxiv.org/abs/2312.06674: the score is the probability of the verdict's first word. Deviations: over both
    words alone.

    Errors: UserError for what is no policy of a language model, other than two different words, and an ``ask`` without its places.
    """
    if getattr(policy, "kind", None) != "token":
        got = getattr(policy, "kind", None) or type(policy).__name__
        raise UserError(f"guard.policy: got {got}, takes a policy of a language model (kind token)")
    both = words or ["safe", "unsafe"]
    if len(both) != 2 or both[0] == both[1] or not all(word.strip() for word in both):
        raise UserError(f"guard.words: got {both}, takes two words, the safe one first")
    if ask is not None and ("{prompt}" not in ask or (of == "answer" and "{answer}" not in ask)):
        raise UserError(f"guard.ask: got {ask[:80]!r}, takes text with {{prompt}}{' and {answer}' if of == 'answer' else ''}")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        answers = [""] * len(prompts) if of == "prompt" else texts("guard", outputs, prompts)
        rows = [row for row, text in enumerate(answers) if of == "prompt" or text.strip()]
        scores = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        if not rows:
            return scores
        asked = [_asked(policy, question(prompts[row]), answers[row], ask) for row in rows]
        logits = torch.stack([_begins_with(policy, asked, word) for word in both], dim=1)
        return scores.index_copy(0, torch.tensor(rows), logits.softmax(1)[:, 0])

    return Scorer("guard", score, low=0.0, high=1.0)


@runtime_checkable
class Chatting(Protocol):
    """A policy with a chat template, which it lets one see."""

    chat: Any


def _asked(policy: Any, prompt: str, answer: str, ask: str | None) -> str:
    """What the guard is given: its own template's text of the conversation, or a question in words of the user's."""
    if ask is None:
        said = [{"role": "user", "content": prompt}, *([{"role": "assistant", "content": answer}] if answer else [])]
        text = str(policy.chat.rendered(said, ask=True)) if isinstance(policy, Chatting) and policy.chat.template else ""
        if not text or not policy.chat.arrives_rendered(text):
            raise UserError(
                "guard.policy: has no chat template with marks of its own around a turn; takes one that has, or ask: a question"
            )
        return text
    places = {"{prompt}": prompt, "{answer}": answer}
    pieces, rest = "", ask
    while found := min((place for place in places if place in rest), key=rest.index, default=None):
        before, _, rest = rest.partition(found)
        pieces += before + places[found]
    return pieces + rest


@torch.no_grad()
def _begins_with(policy: Any, asked: list[Any], word: str) -> Tensor:
    """``[B]`` nats: that a verdict begins with a word, whatever comes behind it."""
    rollout = policy.encode(asked, [word] * len(asked), torch.arange(len(asked)), torch.Generator())
    with policy.using("ref"):
        parts = torch.arange(len(asked)).split(policy.rows_at_once)
        log_probs = torch.cat([policy.steps(rollout, rows).log_probs for rows in parts])
    end = rollout.mask.long().cumsum(1) == rollout.mask.sum(1, keepdim=True)  # the token that ends what is given
    return log_probs.where(rollout.mask & ~end, 0.0).sum(1)
