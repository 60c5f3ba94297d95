"""Whether processes on several machines see the same folder."""

from __future__ import annotations

import secrets
from pathlib import Path

from mmalign.distributed.team import Team
from mmalign.types import UserError


def refuse_elsewhere(team: Team, folder: Path, key: str) -> None:
    """Errors: UserError, in every process, where one of them does not see what the main one puts into ``folder``.

    A file of a new name is looked for, and removed again: a folder of the same name on another machine's disk may hold anything else.
    """
    token = folder / f".seen.{secrets.randbits(60)}.tmp"  # a name of those that a later opening sweeps away, should this process be killed
    if not team.alone and team.main:
        token.touch()
    token = folder / team.tell(token.name)[0]
    try:
        blind = [rank for rank, sees in enumerate(team.everyone(team.alone or token.is_file())) if not sees]
    finally:
        if team.main:
            token.unlink(missing_ok=True)
    if blind:
        raise UserError(f"{key}: process {blind[0]} does not see what process 0 wrote in {folder}; takes a folder that all processes share")
