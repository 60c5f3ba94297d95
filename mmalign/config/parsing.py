"""YAML as a config has it: text becomes OmegaConf's mapping, where it is small and flat enough to be one.

A file that somebody sent may be anything: a few lines whose aliases stand for billions, brackets without end, numbers of a million digits.
Each is refused in one line before it is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MEANT = {
    "\\t": "; lines are indented with spaces",
    "mapping values are not allowed": "; is the line indented as its neighbours, and is text that holds a colon in quotes?",
}
"""What YAML's words say -> what to do about it."""

MOST_BYTES, MOST_NODES, DEEPEST, MOST_DIGITS = 4 * 2**20, 200_000, 40, 40
"""Of a config: bytes, keys and values with aliases written out, levels, and digits of a number."""


def read(file: Path) -> Any:
    """The config in a file, its ``${interpolations}`` as they are written. Errors: UserError in one line."""
    from omegaconf import DictConfig

    from mmalign.types import UserError

    try:
        size, text = file.stat().st_size, ""
        if size <= MOST_BYTES:
            text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: not readable as YAML: {one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not readable as YAML: {one_line(error)}; takes UTF-8, save it as that") from error
    if size > MOST_BYTES:
        raise UserError(f"{file}: got {size:,} bytes, a config takes at most {MOST_BYTES:,}")
    config = parsed(text, str(file))
    if not isinstance(config, DictConfig):
        raise UserError(f"{file}: takes a mapping {{use: ..., ...}} at the top")
    return config


def parsed(text: str, name: str) -> Any:
    """OmegaConf's mapping or list of a text. name: what messages call it. Errors: UserError in one line."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mmalign.types import UserError

    try:
        refuse_large(yaml.compose(text, Loader=yaml.SafeLoader), name)
        return OmegaConf.create(text)
    except RecursionError as error:
        raise UserError(f"{name}: is nested too deep, a config takes at most {DEEPEST} levels") from error
    except UserError:
        raise
    except OmegaConfBaseException as error:
        key = f" at {error.full_key}" if error.full_key else ""
        raise UserError(f"{name}: not readable as YAML{key}: {one_line(error)}") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{name}: not readable as YAML: {_where(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{name}: not readable as YAML: {one_line(error)}") from error


def _where(error: Any) -> str:
    """What YAML says, in which line, and what is meant by it."""
    says, at, begins = error.problem or error.context or "", error.problem_mark, error.context_mark
    place = "" if at is None else f" in line {at.line + 1}, column {at.column + 1}"
    meant = next((meant for words, meant in MEANT.items() if words in says), "")
    if not error.problem or begins is None or begins.line == at.line:
        return f"{says}{place}{meant}"
    if says.startswith("but "):
        return f"{error.context} {says}{place}"
    return f"{says}{place}, {error.context} of line {begins.line + 1}{meant}"


def refuse_large(node: Any, name: str) -> None:
    """Errors: UserError for a graph of YAML's nodes that is deeper, larger or longer than a config is, aliases written out."""
    from mmalign.types import UserError

    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: Any, key: str, depth: int) -> int:
        if id(node) in open_:
            raise UserError(f"{key or name}: holds itself")
        if depth > DEEPEST:
            raise UserError(f"{key[:60] or name}: is nested too deep, a config takes at most {DEEPEST} levels")
        if id(node) in sizes:
            return sizes[id(node)]
        open_.add(id(node))
        count = 1
        if node.id == "mapping":
            for name_of, value in node.value:
                word = name_of.value if name_of.id == "scalar" else "?"
                count += size(name_of, f"{key}.{word}", depth + 1) + size(value, f"{key}.{word}".lstrip("."), depth + 1)
        elif node.id == "sequence":
            count += sum(size(value, f"{key}[{number}]", depth + 1) for number, value in enumerate(node.value))
        elif node.tag.endswith((":int", ":float")) and len(node.value) > MOST_DIGITS:
            raise UserError(f"{key}: got a number of {len(node.value):,} digits, takes at most {MOST_DIGITS}")
        open_.discard(id(node))
        if count > MOST_NODES:
            raise UserError(f"{key[:60] or name}: stands for {count:,} values, a config takes at most {MOST_NODES:,}")
        sizes[id(node)] = count
        return count

    if node is not None:
        size(node, "", 0)


def one_line(error: BaseException) -> str:
    """What an error says, without the lines that OmegaConf adds."""
    lines = [line.strip() for line in str(error).replace('in "<unicode string>", ', "at ").splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
    return (text if len(text) <= 1000 else f"{text[:1000]} ...") or type(error).__name__
