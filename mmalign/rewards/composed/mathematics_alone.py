"""A reward of what is mathematics in an answer, without the words around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mmalign.arguments.parameters import accepted
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.completions import texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

__all__ = ["mathematics_alone"]

MARKED = re.compile(r"[0-9=+*/<>^_\\$%|{}]|\A-\Z|\A[a-zA-Z]\Z|\A\([a-zA-Z]\)\Z")
ARTICLES = frozenset({"a", "A", "I"})


def mathematics_alone(reward: Callable[..., Any]) -> Scorer:
    """``reward`` of each output without its natural language: does a reward of steps read the reasoning, or the formulas alone?

    What is kept of a text, line by line, are its words with a digit, an operator or LaTeX in them, and single letters but the words "a" and
    "I"; lines of which nothing is left are gone. Beside ``reward`` itself, as a judge or in ``evaluate_ranking``, it is the ablation that
    takes thoughts away and keeps mathematics. An output that becomes empty is asked about as it is then.

    reward: of texts, such as a reward model of steps (``trained``).

    Paper: What Are Step-Level Reward Models Rewarding? Counterintuitive Findings from MCTS-Boosted Mathematical Reasoning,
    https://arxiv.org/abs/2412.15904 (*its abstract*: natural-language thoughts matter little). The rule by words is ours.

    Errors: UserError for what is no reward, and outputs that are no texts.

    Examples:
        >>> formulas("First we add: 2 + 3 = 5.\\nThat is nice.\\nSo x is \\\\frac{5}{2}")
        '2 + 3 = 5.\\nx \\\\frac{5}{2}'
    """
    if not callable(reward):
        raise UserError(f"mathematics_alone.reward: got a {type(reward).__name__}, takes a reward")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        kept = [formulas(text) for text in texts("mathematics_alone", outputs, prompts)]
        return reward(kept, prompts, **accepted(reward, columns))

    return Scorer("mathematics_alone", score, reads=columns_read(reward))


def formulas(text: str) -> str:
    """The words of a text that are mathematics, in their lines."""
    lines = [" ".join(word for word in line.split() if _is_formula(word)) for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


def _is_formula(word: str) -> bool:
    bare = word.strip(".,;:!?")
    return bare not in ARTICLES and MARKED.search(bare) is not None
