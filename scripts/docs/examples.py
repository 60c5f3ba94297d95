"""The configs that come with mmalign, as pages: a folder to a page, each config with its comment and its YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from mmalign.lookup.catalogue import comment, configs

USED = re.compile(r"\buse: *([A-Za-z_][\w.]*)")


@cache
def uses() -> dict[str, list[str]]:
    """name -> the configs that use it."""
    found: dict[str, list[str]] = {}
    for config, path in configs().items():
        for name in sorted({*USED.findall(path.read_text(encoding="utf-8"))}):
            found.setdefault(name, []).append(config)
    return found


def pages() -> Iterator[tuple[str, str]]:
    """(path from the root of the site, markdown) of each folder of configs."""
    for folder, members in groupby(configs().items(), key=lambda item: item[0].rpartition("/")[0]):
        yield f"configs/{folder}.md", "\n".join(_folder(folder, list(members)))


def table() -> Iterator[str]:
    """A table of the folders: how many configs each has."""
    yield "| folder | configs |\n|---|---|"
    for folder, members in groupby(configs(), key=lambda name: name.rpartition("/")[0]):
        names = [name.rpartition("/")[2] for name in members]
        more = f", and {len(names) - 8} more" if len(names) > 8 else ""
        yield f"| [`{folder}`]({folder}.md) | {', '.join(f'`{name}`' for name in names[:8])}{more} |"


def _folder(folder: str, members: list[tuple[str, Path]]) -> Iterator[str]:
    yield f"# Configs of {folder}\n"
    yield f"`mmalign train {members[0][0]}` trains one, `mmalign check {members[0][0]}` names its mistakes without loading anything.\n"
    for config, path in members:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
        body = "\n".join(lines[first:]).strip()
        said = re.sub(r"([<*_\[\]])", r"\\\1", comment(path))
        yield f"## {config} {{ #{config.rpartition('/')[2]} }}\n\n{said}\n\n```yaml\n{body}\n```\n"
