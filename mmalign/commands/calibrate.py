"""Scores of a model's own samples, prompt by prompt: what ``calibrated`` and ``log_sigmoid`` compare later ones with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count, Seed
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.files import write_text
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, beside, refuse_columns
from mmalign.training.rollouts.latents import latents_of, refuse_without_latents
from mmalign.training.seeds import stream
from mmalign.types import Policy, UserError, columns_of, contents


def calibrate(
    policy: Policy,
    prompts: Sequence[Any],
    rewards: Mapping[str, Callable[..., Any]],
    *,
    out: Path,
    samples: Count = 16,
    prompts_at_once: Count = 8,
    seed: Seed = 0,
) -> Path:
    """Writes ``{"prompt": ..., "rewards": {name: [samples]}}``, a JSON line for each prompt, and returns the file.

    The policy draws as in training, by its own sampler; it should be the one that training starts from. Missing scores are null.

    Args:
        policy: what answers. prompts: each is asked once. rewards: name -> reward, what is scored.
        out: the file; it appears whole or not at all. samples: of each prompt. prompts_at_once: prompts in one rollout.

    Of several processes each does some of the rollouts, and the main one writes.

    Errors: UserError for a file that is there already, numbers below 1, and more processes than rollouts.
    """
    if samples < 1 or prompts_at_once < 1 or not prompts:
        got = f"{len(prompts)} prompts, samples={samples}, prompts_at_once={prompts_at_once}"
        raise UserError(f"calibrate: got {got}, takes 1 or more of each")
    if out.exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    refuse_columns(rewards, columns_of(prompts), kind="reward")
    refuse_without_latents(policy, rewards)
    starts, team = range(0, len(prompts), prompts_at_once), joined()

    def scored(start: int) -> dict[str, list[list[float]]]:
        some = list(prompts[start : start + prompts_at_once])
        rollout = policy.sample(contents(some), samples, stream(seed, start, 0, "calibrate"))
        scores = ask(
            rewards, rollout.outputs, rollout.prompts, beside(some, rows=len(rollout)), latents=latents_of(policy, rollout, rewards)
        )
        return {name: values.view(len(some), samples).tolist() for name, values in scores.items()}

    with stopping_together(team):
        team_for(len(starts), f"rollouts of {prompts_at_once} prompts")
        team.agree("calibrate", {"prompts": hashed(prompts), "rewards": sorted(rewards), "samples": samples, "seed": seed})
        lines = []
        for start, scores in in_turn(team, starts, scored):
            for row, prompt in enumerate(prompts[start : start + prompts_at_once]):
                by_name = {name: [None if math.isnan(value) else value for value in values[row]] for name, values in scores.items()}
                lines.append(json.dumps({"prompt": contents([prompt])[0], "rewards": by_name}, ensure_ascii=False))
        if team.main:
            write_text(out, "".join(f"{line}\n" for line in lines))
        return out
