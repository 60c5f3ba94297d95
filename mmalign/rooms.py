"""The folder is the registry: a room is a package that answers with the public functions of its own files.

``furnish(__name__)`` in a package's ``__init__.py`` makes it a room. A file of a room, or of one of its sub-folders, offers the function
or class of its own name, or what its ``__all__`` lists, which may be nothing; names are read with ``ast`` and imported when they are asked
for. So a method or a reward is added by adding one file, what a file keeps for its neighbours stays out, and ``import mmalign`` loads
nothing.

A file and its function may share one name (``rewards/jpeg.py`` defines ``jpeg``). Python would bind the submodule over the function
as soon as somebody imports the file; a room keeps the function, and ``from mmalign.rewards.jpeg import jpeg`` works as ever.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from mmalign.arguments.places import resource as resource
from mmalign.arguments.signatures import nearest


class Entry(NamedTuple):
    """What a file says of one public name, known without importing it.

    ``module``: the dotted name of its file. ``meaning``: the first line of its docstring. ``paper``: what follows ``Paper:`` in the
    docstring (or else in the file's), or an empty string. ``function``: False for a class. ``returns``: its annotation, as it is written.
    """

    name: str
    module: str
    meaning: str
    paper: str
    function: bool
    returns: str


class Room(ModuleType):
    """The class of a furnished package: looks names up in its index, and never lets a submodule hide a function of its name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in index(self.__name__):
            raise AttributeError(_unknown(self.__name__, name))
        return offered(self.__name__, name)

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in index(self.__name__):
            return  # the import system binding a file over the function that has its name
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        files = {name for name, value in vars(self).items() if isinstance(value, ModuleType)}  # those that happen to be loaded
        return sorted(({*super().__dir__()} - files - {furnish.__name__}) | {*index(self.__name__)})


def offered(room: str, name: str) -> Any:
    """What a room answers with: a class as it is, and a function so that what it returns remembers its call (`arguments.calls`)."""
    value = _load(room, name)
    if not isinstance(value, FunctionType):
        return value
    from mmalign.arguments.calls import remembering

    return remembering(value)


def furnish(package: str) -> None:
    """Makes the package of that name a room; to be called in its ``__init__.py`` as ``furnish(__name__)``."""
    sys.modules[package].__class__ = Room


@cache
def index(room: str) -> dict[str, tuple[Entry, ...]]:
    """name -> its entries, for a package or a single file given by dotted name; more than one entry is a mistake that `find` reports."""
    entries: dict[str, tuple[Entry, ...]] = {}
    for module, path in _files(room):
        for entry in _read(module, path):
            entries[entry.name] = (*entries.get(entry.name, ()), entry)
    return dict(sorted(entries.items()))


def find(room: str, name: str) -> Any:
    """The function or class called ``name`` in a room, or at an import path.

    room: dotted name of a package or of a single file, ``mmalign.methods``. name: a name of the room; or an import path inside
    mmalign (``worlds.digits.judges.digits_proxy``) or outside (``my_package.my_module.my_method``, ``package.Class.classmethod``).

    Errors: UserError with the nearest names for an unknown one.
    """
    from mmalign.types import UserError

    if "." in name:
        return import_path(name)
    if name not in index(room):
        raise UserError(_unknown(room, name))
    return _load(room, name)


def import_path(path: str) -> Any:
    """The object at a dotted path: the longest part of it that is a module, then attributes.

    A path that begins with a folder of mmalign (``worlds.digits.judges.digits_proxy``) is looked up there first, and then outside.

    Errors: UserError where there is none.
    """
    return _resolved(path)[1]


def absolute(path: str) -> str:
    """An import path with ``mmalign.`` before it where it leads into mmalign. Errors: UserError where it leads nowhere."""
    return _resolved(path)[0]


def _resolved(path: str) -> tuple[str, Any]:
    from mmalign.types import UserError

    mistakes = []
    for whole in (f"mmalign.{path}", path) if begins_inside(path) else (path,):
        try:
            return whole, _walk(whole, path)
        except UserError as mistake:
            mistakes.append(mistake)
    raise next((mistake for mistake in reversed(mistakes) if str(mistake) != no_module(path)), mistakes[0])


def begins_inside(path: str) -> bool:
    """Whether a dotted path begins with a folder of mmalign."""
    return os.path.isdir(Path(__file__).parent / path.split(".")[0])


def _walk(whole: str, path: str) -> Any:
    from mmalign.types import UserError

    parts = whole.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = _module(".".join(parts[:length]), path)
        if module is not None:
            return _attribute(module, parts[length:], path)
    raise UserError(no_module(path))


def no_module(path: str) -> str:
    """The line for an import path that begins with no module."""
    first = path.split(".")[0]
    nor = "mmalign has nothing there, and " if begins_inside(path) else ""
    return f"{path}: {nor}no module called {first!r} can be imported; takes an import path like my_package.my_module.my_function"


def _module(name: str, path: str) -> ModuleType | None:
    from mmalign.types import UserError

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            return None  # this part of the path is no module; a package missing inside an existing module is another matter
        raise UserError(f"{path}: needs the package {error.name}, which is not installed") from error


def _attribute(owner: Any, names: list[str], path: str) -> Any:
    from mmalign.types import UserError

    for name in names:
        try:
            owner = getattr(owner, name)
        except AttributeError:
            known = [known for known in dir(owner) if not known.startswith("_")]
            raise UserError(f"{path}: no {name!r} there{nearest(name, known)}") from None
    return owner


def _load(room: str, name: str) -> Any:
    first, *others = index(room)[name]
    if others:
        homes = ", ".join(entry.module for entry in (first, *others))
        raise ImportError(f"{room}: {name!r} is defined in more than one file: {homes}")
    return getattr(importlib.import_module(first.module), name)


def _unknown(room: str, name: str) -> str:
    known = list(index(room))
    near = nearest(name, known)
    return f"{room.removeprefix('mmalign.')} has no {name!r}{near or '; it has: ' + (', '.join(known) or 'nothing yet')}"


def _files(room: str) -> Iterator[tuple[str, Path]]:
    """(dotted name, path) of a room's public files, found without importing the room."""
    top, *rest = room.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package called {top!r}", name=top)
    place = Path(spec.submodule_search_locations[0], *rest)
    if not place.is_dir():
        yield room, place.with_suffix(".py")
        return
    for path in sorted(place.rglob("*.py")):
        parts = path.relative_to(place).with_suffix("").parts
        if parts == ("__init__",) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        yield ".".join((room, *(part for part in parts if part != "__init__"))), path


def _read(module: str, path: Path) -> Iterator[Entry]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    offered = _listed(tree)
    if offered is None:
        offered = {path.parent.name if path.stem == "__init__" else path.stem}
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in offered:
            continue
        own = ast.get_docstring(node) or ""
        meaning = own.strip().split("\n")[0]
        paper = _paper(own) or _paper(ast.get_docstring(tree) or "")
        returns = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns is not None else ""
        yield Entry(node.name, module, meaning, paper, isinstance(node, ast.FunctionDef), returns)


def _listed(tree: ast.Module) -> set[str] | None:
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                return set(ast.literal_eval(node.value))
    return None


def _paper(docstring: str) -> str:
    """The paragraph after ``Paper:`` as one line."""
    _, found, rest = f"\n{inspect.cleandoc(docstring)}".partition("\nPaper:")
    return " ".join(rest.partition("\n\n")[0].split()) if found else ""
