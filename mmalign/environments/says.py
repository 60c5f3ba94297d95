"""A user who always says the same."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.conversations import Turn
from mmalign.environments._parts import Environment
from mmalign.types import UserError


def says(words: str = "Please improve this answer.") -> Environment:
    """Whatever the policy says, the user replies with ``words``: a policy that refines its own answer as often as ``turns.limit`` lets it.

    words: what the user says.

    Paper: self-refinement at inference (EVOLVE, arXiv 2502.05605, *recalled*; Self-Refine, arXiv 2303.17651).

    Errors: UserError for no words.

    Examples:
        >>> environment = mm.environments.says("Again.")
        >>> environment([[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "5"}]])
        ['Again.']
    """
    if not words.strip():
        raise UserError(f"says.words: got {words!r}, takes at least one word")

    def environment(conversations: Sequence[Sequence[Turn]]) -> list[str]:
        return [words] * len(conversations)

    return environment
