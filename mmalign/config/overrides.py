"""Changes to a config on the command line: ``policy.lora.rank=8``, ``run.trackers=[wandb]``, ``rewards={mine: {use: jpeg}}``.

A value replaces what is there, as if the file had it: a mapping too, of which nothing is kept, since its keys may exclude each other.
Settings of a node without its ``use`` go into the node. ``rewards.mine={use: jpeg}`` adds to a mapping. An entry of a list is ``list[0]``
or ``list.0``; the one past its end is added.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mmalign.config.parsing import parsed

NAME = r"[^.\[\]=]+(\[\d{1,6}\])*"
KEY = re.compile(rf"{NAME}(\.{NAME})*")


def override(config: dict[str, Any], word: str) -> None:
    """Changes a config, as its file has it, by ``key.sub=value``, the value in YAML. Errors: UserError that begins with the word."""
    from omegaconf import OmegaConf

    from mmalign.types import UserError

    key, equals, text = word.partition("=")
    shown = word if len(word) <= 100 else f"{word[:100]}..."
    if not equals or not KEY.fullmatch(key):
        raise UserError(f"{shown}: takes key.sub=value")
    change: Any = OmegaConf.to_container(parsed(f"{json.dumps(key)}: {text}", f"{shown}: takes key.sub=value"), resolve=False)
    *names, last = [name if name else int(number) for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key)]
    home, place = config, ""
    for position, name in enumerate(names):
        following = [*names, last][position + 1]
        slot = _slot(home, name, place, shown)
        place = f"{place}[{name}]" if isinstance(name, int) else f"{place}.{name}".lstrip(".")
        if home[slot] is None or (following == last == "use" and _uses_another(home[slot], {"use": change[key]})):
            home[slot] = [] if isinstance(following, int) else {}
        home = home[slot]
    slot = _slot(home, last, place, shown)
    home[slot] = _replaced(home[slot], change[key])


def _slot(home: Any, name: str | int, place: str, word: str) -> Any:
    """The key or the number under which a mapping or a list has something by that name; there is None where it had nothing."""
    from mmalign.types import UserError

    if isinstance(home, list) and str(name).isdecimal() and int(name) <= len(home):
        home.extend([None] * (int(name) == len(home)))
        return int(name)
    if isinstance(home, list):
        raise UserError(f"{word}: {place} is a list of {len(home)}, takes {place}[0] to {place}[{len(home)}]")
    if not isinstance(home, dict) or isinstance(name, int):
        raise UserError(f"{word}: {place} holds {home!r}, so it has no {name!r}")
    home.setdefault(name, None)
    return name


def _replaced(before: Any, value: Any) -> Any:
    """What stands there now: the value, or the node with it where it says no ``use`` of its own."""
    inside = isinstance(before, dict) and "use" in before and isinstance(value, dict) and "use" not in value
    return {**before, **value} if inside else value


def _uses_another(before: Any, value: dict[str, Any]) -> bool:
    return isinstance(before, dict) and "use" in before and value.get("use", before["use"]) != before["use"]
