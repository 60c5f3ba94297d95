"""A reward under principles, which may be others than those that it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mmalign.arguments.parameters import accepted
from mmalign.arguments.reads import columns_read
from mmalign.conversations import JUDGED_BY, said_after
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def by_principles(reward: Callable[..., Any], *, principles: Sequence[str], words: str = JUDGED_BY) -> Scorer:
    """``reward`` of outputs whose prompts name these principles: ``r(x, y | principles)``.

    For a reward model that was trained on ``principled`` pairs (``{use: trained, run: ...}``), or any reward that reads what its prompt
    says. The policy itself is not told.

    reward: of outputs and prompts. principles: sentences. words: how a prompt names them, as of ``principled``; ``{principles}`` are the
    sentences, one in a line.

    Paper: SALMON: Self-Alignment with Principle-Following Reward Models, arXiv 2310.05910, sec. 3.3: a principle that is added while a
    policy is trained holds back what it exploits.

    Errors: UserError for what is no reward, no principle, and words without ``{principles}``.

    Examples:
        >>> told = mm.rewards.by_principles(lambda outputs, prompts: torch.tensor([float("brief" in prompt) for prompt in prompts]),
        ...                                 principles=["Be brief."], words=" {principles}".lower())
        >>> told(["so"], ["Why?"]).tolist()
        [1.0]
    """
    if not callable(reward):
        raise UserError(f"by_principles.reward: got {type(reward).__name__}, takes a reward")
    if not principles or isinstance(principles, str) or "{principles}" not in words:
        raise UserError(f"by_principles: got {principles!r}, words {words!r}, takes sentences, and words with {{principles}} in them")
    rules = words.replace("{principles}", "\n".join(principles))

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        return reward(outputs, [said_after(prompt, rules) for prompt in prompts], **accepted(reward, columns))

    if isinstance(reward, Scorer):
        return replace(reward, score=score, latents=None)
    return Scorer("by_principles", score, reads=columns_read(reward))
