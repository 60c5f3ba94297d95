"""Writes mmalign/**/__init__.pyi: the names of every room as an editor and a type checker read them.

    python scripts/make_stubs.py

Rooms answer from their files when they are asked (`mmalign.rooms`), which only running code can see. A stub says the same in imports,
so that ``mm.methods.`` completes and ``mm.online(`` shows its arguments. A test holds the stubs to the rooms.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mmalign.rooms import Room, index

ROOT = Path(__file__).parents[1]
PACKAGE: Any = import_module("mmalign")  # as it runs: its types are what is written here


def stubs() -> dict[Path, str]:
    """path -> what it shall hold, for the package and for each of its rooms."""
    files = {ROOT / "mmalign" / "__init__.pyi": _package()}
    for name, module in {**{room: f"mmalign.{room}" for room in PACKAGE.ROOMS}, **PACKAGE.FILES}.items():
        folder = ROOT.joinpath(*module.split("."))
        if isinstance(getattr(PACKAGE, name), Room) and folder.is_dir():
            files[folder / "__init__.pyi"] = _names(module)
    return files


def _names(room: str) -> str:
    lines = sorted(f"from {entry.module} import {name} as {name}" for name, (entry, *_) in index(room).items())
    return "\n".join(lines) + "\n"


def _package() -> str:
    rooms = [f"from mmalign import {room} as {room}" for room in PACKAGE.ROOMS]
    files = [f"from {module.rpartition('.')[0]} import {module.rpartition('.')[2]} as {name}" for name, module in PACKAGE.FILES.items()]
    functions = {name: index(home)[name][0].module if home in PACKAGE.CALLED or name in index(home) else home for name, home in _flat()}
    flat = [f"from {module} import {name} as {name}" for name, module in functions.items()]
    return "\n".join(sorted([*rooms, *files, *flat])) + "\n\n__version__: str\n"


def _flat() -> list[tuple[str, str]]:
    called = [(name, home) for home in PACKAGE.CALLED for name in index(home)]
    return [*PACKAGE.FLAT.items(), *called]


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
