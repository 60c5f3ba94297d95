"""What a model scored before it was trained, for each prompt: the file that the recipe ``calibrate`` writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mmalign.conversations import known_by
from mmalign.types import UserError


def read_reference(owner: str, path: str, reward: str | None = None) -> dict[str, list[float]]:
    """prompt, as ``conversations.known_by`` has it -> the known scores of the reference model's samples, by one reward.

    JSON lines ``{"prompt": ..., "rewards": {name: [scores]}}``. Missing scores are left out. reward: which; the only one, where it has one.

    Errors: UserError with the line's number, and for a reward that the file has not.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{owner}.reference: no such file: {path}")
    rewards: dict[str, dict[str, list[float]]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt = known_by(row["prompt"])
            for name, scores in dict(row["rewards"]).items():
                values = [math.nan if score is None else float(score) for score in scores]
                rewards.setdefault(name, {})[prompt] = [value for value in values if not math.isnan(value)]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            takes = 'takes {"prompt": ..., "rewards": {name: [numbers]}}'
            raise UserError(f"{owner}.reference: {path}, line {number}: {takes}") from error
    if reward is None and len(rewards) == 1:
        return next(iter(rewards.values()))
    if reward not in rewards:
        raise UserError(f"{owner}.reward: got {reward!r}, takes a reward of {path}: {', '.join(rewards) or 'none'}")
    return rewards[reward]
