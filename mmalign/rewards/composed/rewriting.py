"""Rewards of single words, from what a model would write in their place."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

from mmalign.arguments.ranges import Count
from mmalign.conversations import MADE_BETTER, said_after
from mmalign.rewards._shared.completions import texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.composed.through import Answering
from mmalign.types import UserError

WORD = re.compile(r"\S+")


def rewriting(policy: Any, *, words: str = MADE_BETTER, match: Literal["beginning", "aligned"] = "beginning", at_once: Count = 64) -> Any:
    """1 for every word that a rewriter leaves where it is, -1 for every other, as ``(start, end, score)`` of each.

    The rewriter is a language model that was trained on ``rewritten`` pairs, to make an answer better or to leave it as it is; what it
    writes is its likeliest answer. The words' scores arrive at the steps that end them for methods that read rewards of steps
    (``fine_grained_rlhf``); for others their sum is the reward of the text.

    Args:
        policy: the rewriter; in a config ``{use: transformers, model: ..., start: RUN, max_completion: ...}``.
        words: what it was shown answers with, as of ``rewritten``.
        match: ``beginning``, a word is left as long as all words before it are; ``aligned``, words of the longest common runs are.
        at_once: answers that it is asked about in one call.

    An empty answer has no words, and cannot be judged: None.

    Paper: Sequence to Sequence Reward Modeling: Improving RLHF by Language Feedback, arXiv 2409.00162 (recalled: 1 and -1, by matching).

    Deviations: words, where the paper has tokens; how it aligns the two was not to be found, and both ways are here.

    Errors: UserError for what does not answer prompts, and for words without ``{answer}``.
    """
    if not isinstance(policy, Answering):
        raise UserError(f"rewriting.policy: got {type(policy).__name__}, takes a policy of a language model")
    if "{answer}" not in words:
        raise UserError(f"rewriting.words: got {words!r}, takes words with {{answer}} in them")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> list[list[tuple[int, int, float]] | None]:
        known = [(row, text) for row, text in enumerate(texts("rewriting", outputs, prompts)) if text.strip()]
        scored: list[list[tuple[int, int, float]] | None] = [None] * len(prompts)
        for start in range(0, len(known), at_once):
            some = known[start : start + at_once]
            asked = [said_after(prompts[row], words.replace("{answer}", text)) for row, text in some]
            written = policy.generate(asked, [0] * len(some), top_k=1)  # of one word there is one answer, whatever the seed
            for (row, text), better in zip(some, texts("rewriting", written, asked), strict=True):
                scored[row] = kept(text, better, match=match)
        return scored

    return Scorer("rewriting", score)


def kept(text: str, better: str, *, match: str) -> list[tuple[int, int, float]]:
    """``(start, end, 1 or -1)`` of each word of a text: whether it is in its place in a better one. match: as of ``rewriting``.

    Examples:
        >>> [score for _, _, score in kept("the cat sat down", "the dog sat down", match="beginning")]
        [1.0, -1.0, -1.0, -1.0]
        >>> [score for _, _, score in kept("the cat sat down", "the dog sat down", match="aligned")]
        [1.0, -1.0, 1.0, 1.0]
    """
    own, other = [list(WORD.finditer(one)) for one in (text, better)]
    left, right = [word.group() for word in own], [word.group() for word in other]
    if match == "beginning":
        same = next((place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right)))
        there = set(range(same))
    else:
        runs = difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
        there = {place for run in runs for place in range(run.a, run.a + run.size)}
    return [(word.start(), word.end(), 1.0 if place in there else -1.0) for place, word in enumerate(own)]
