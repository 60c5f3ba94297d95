"""What somebody's own function raised, as words that say where."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

NOT_THEIRS = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]), "<")
"""How files begin that are a library's, or ours."""


def said(error: BaseException) -> str:
    """``raised KeyError: 'x' (my_rewards.py, line 3)``: the last line of theirs that led to it; without a place where there is none.

    Examples:
        >>> said(ValueError("no such\\nthing"))
        'raised ValueError: no such thing'
    """
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(NOT_THEIRS)]
    place = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}{place}"
