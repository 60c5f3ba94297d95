"""A pool of prompts as a file, and prompts that a policy makes of others: the hook by which a pool evolves from round to round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count, Seed
from mmalign.commands._answers import seeds_of
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined
from mmalign.files import write_text
from mmalign.training.journal import hashed
from mmalign.types import Policy, Prompt, UserError, contents

__all__ = ["make_prompts"]


def make_prompts(  # what a command may be told
    prompts: Sequence[Any],
    *,
    out: str,
    policy: Policy | None = None,
    order: str = "{prompt}",
    grow: bool = False,
    keep: bool = True,
    prompts_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, int]:
    """Writes prompts to a file that ``data.prompts`` reads, with those that a policy makes of them; returns counts.

    Args:
        prompts: the pool; conversations are written as they are, and none is made of them.
        out: the file, JSON lines of ``prompt`` and its columns; it appears whole or not at all.
        policy: what makes a new prompt of each, a language model that is told ``order``. None: nothing is made.
        order: what it is told, with ``{prompt}`` in it: "Rewrite this question so that it is harder: {prompt}".
        grow: the new prompt is the old one and what the policy said after it, and not what it said alone.
        keep: the old prompts are in the file too, before the new ones.
        prompts_at_once: prompts that are made at once. seed: of the sampling.

    A new prompt has no columns, as an answer to the old one is none to it. One that says nothing new (no word, or a prompt that is in the
    pool) is left out. Counts: ``prompts`` (written), ``made``, ``left_out``.

    Paper: Scalable Reinforcement Post-Training Beyond Static Human Prompts (eva), arXiv 2411.00062 (the creator's step); its orders are
    Evol-Instruct's (arXiv 2304.12244). Of several processes each makes some, and the main one writes.

    Errors: UserError for a file that is there already, an order without its place, a policy that does not answer in words, and where no
    prompt is left.
    """
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    if "{prompt}" not in order:
        raise UserError(f"order: got {order!r}, takes words with {{prompt}} in them")
    asked = [prompt for prompt in contents(prompts) if isinstance(prompt, str)] if policy is not None else []
    counts, lines, team = {"prompts": 0, "made": 0, "left_out": 0}, list[dict[str, Any]](), joined()

    def made(start: int) -> list[str]:
        some = asked[start : start + prompts_at_once]
        seeds = seeds_of(seed, start, len(some))
        answers = [] if policy is None else policy.generate([order.replace("{prompt}", prompt) for prompt in some], seeds)
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise UserError("policy: does not answer in words, and prompts are words; takes a language model")
        said = [answer.strip() for answer in answers]
        return [f"{prompt} {answer}" if grow and answer else answer for prompt, answer in zip(some, said, strict=True)]

    with stopping_together(team):
        team.agree("make_prompts", {"prompts": hashed(prompts), "order": order, "grow": grow, "keep": keep, "seed": seed})
        lines += [_line(prompt) for prompt in prompts] if keep else []
        known = {prompt.strip() for prompt in asked}
        for _, new in in_turn(team, range(0, len(asked), prompts_at_once), made):
            for prompt in new:
                fresh = bool(prompt) and prompt not in known
                counts["made" if fresh else "left_out"] += 1
                known.add(prompt)
                lines += [{"prompt": prompt}] if fresh else []
        if not lines:
            raise UserError(f"prompts: none of {len(asked)} that were made says anything new; takes keep: true, or another policy or order")
        counts["prompts"] = len(lines)
        if team.main:
            write_text(Path(out), "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
        team.tell("written")
    return counts


def _line(prompt: Any) -> dict[str, Any]:
    return {**(prompt.columns if isinstance(prompt, Prompt) else {}), "prompt": contents([prompt])[0]}
