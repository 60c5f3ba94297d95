"""JSON, numbers and names out of files that somebody else wrote: each is read, or is a Broken of one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mmalign.media import Broken

SHOWN = 60  # letters of a value in a message


def parsed(text: str | bytes) -> Any:
    """What JSON says. Errors: Broken for what is no JSON, and for lists within lists that are deeper than Python goes."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Broken("not JSON that can be read: nested too deep") from error
    except ValueError as error:  # a number of thousands of digits and bytes that are no UTF-8, too
        raise Broken(f"not JSON: {short(error)}") from error


def number(value: Any) -> float:
    """A number, or NaN for what is missing. Errors: Broken for other text, and for a number that is not finite."""
    if value is None or value == "":
        return math.nan
    try:
        read = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise Broken(f"got {excerpt(value)}, takes a number") from error
    if math.isinf(read):
        raise Broken(f"got {excerpt(value)}, takes a finite number")
    return read


def words(content: bytes, name: str) -> str:
    """Bytes as the text that they are in UTF-8. Errors: Broken for others, rather than marks in place of letters."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Broken(f"{name}: not UTF-8 ({error.reason} at byte {error.start})") from error


def excerpt(value: Any) -> str:
    """A value as messages show it: on one line, and not all of it."""
    if isinstance(value, int) and abs(value) > 10**SHOWN:
        return f"a number of {value.bit_length()} bits"
    if not isinstance(value, (str, bytes, int, float, type(None))):
        return type(value).__name__
    text = repr(value[:SHOWN] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 2 * SHOWN else f"{text[: 2 * SHOWN]}..."


def short(error: BaseException) -> str:
    """What an error says, on one line, and not all of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 4 * SHOWN else f"{text[: 4 * SHOWN]}..."


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a name that no file can have (too long, a zero in it) is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; see ``is_file``."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False
