"""What a config names outside of mmalign: told apart, found, and read as text, without importing or running any of it.

A config is code: a node calls whatever its ``use`` names. What mmalign's rooms offer is ours; any other import path, a helper inside of
mmalign included, is outside, and so is code that comes with a model (``trust_remote_code``).
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.arguments.signatures import nearest
from mmalign.rooms import begins_inside, index

IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
OFFERING = (
    "policies", "worlds", "methods", "samplers.kernels", "samplers.windows", "samplers.branches", "guidance", "data", "rewards",
    "combinations", "evaluation", "training.optimizers", "environments",
)  # fmt: skip
"""Rooms whose names are ours wherever they stand."""
CALLED = ("recipes", "commands")
"""Rooms whose names are ours where a whole config uses them."""


class ExternalCode(NamedTuple):
    """Something that would be imported and run. key: where it stands in the config. name: its import path. file: where it is, if known."""

    key: str
    name: str
    file: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.key})"


class SourceSignature(NamedTuple):
    """What the source of a function says. keywords: name -> whether it is required. any_key: it takes others too. line: of its file."""

    file: Path
    line: int
    keywords: dict[str, bool]
    any_key: bool
    signature: str
    docstring: str


def is_offered(path: str, *, whole: bool = False) -> bool:
    """Whether an import path leads to what a room offers. whole: a recipe or a command counts as well.

    Examples:
        >>> is_offered("data.edits.source_images"), is_offered("os.system"), is_offered("mmalign.files.write_text")
        (True, False, False)
    """
    module, _, name = path.rpartition(".")
    return (module.removeprefix("mmalign.") + "." + name) in _offered(whole)


@cache
def _offered(whole: bool) -> frozenset[str]:
    """Every import path, without ``mmalign.``, at which a room's name can be reached: its file's, and its room's own."""
    paths = set()
    for room in (*OFFERING, *(CALLED if whole else ())):
        for name, entries in index(f"mmalign.{room}").items():
            paths |= {f"{entry.module.removeprefix('mmalign.')}.{name}" for entry in entries} | {f"{room}.{name}"}
    return frozenset(paths)


def source_file(path: str) -> tuple[Path | None, list[str]]:
    """(the file of the longest part of an import path that is a module, the names after it); None where there is no such module.

    As in `rooms.import_path`, a path that begins with a folder of mmalign is looked up there first.
    """
    parts = path.split(".")
    if begins_inside(path) and source_signature(f"mmalign.{path}") is not None:
        return source_file(f"mmalign.{path}")
    try:
        spec = find_spec(parts[0])  # of a top-level name alone: for any other one, Python imports its package
    except (ImportError, ValueError):
        return None, parts
    if spec is None or len(parts) < 2:
        return None, parts
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    folders, rest = [Path(folder) for folder in spec.submodule_search_locations or ()], parts[1:]
    while len(rest) > 1:
        inside = [folder / rest[0] for folder in folders]
        modules = [*(folder / "__init__.py" for folder in inside), *(folder.with_suffix(".py") for folder in inside)]
        module_there = next((module for module in modules if module.is_file()), None)
        folders = (
            [folder for folder in inside if folder.is_dir()]
            if module_there is None
            else [module_there.parent] * (module_there.name == "__init__.py")
        )
        if module_there is None and not folders:
            break
        file, rest = module_there, rest[1:]
    return file, rest


def is_importable(path: str) -> bool:
    """Whether the first name of an import path is a module at all: one of a file, or built in; or all of it is inside of mmalign."""
    try:
        return find_spec(path.split(".")[0]) is not None or source_file(path)[0] is not None
    except (ImportError, ValueError):
        return False


def lacking(path: str) -> str | None:
    """What is wrong with an import path whose module's source is there and binds no such name; None where it does, or cannot be read so.

    Nothing is run, and so a module that fills itself (``from x import *``, ``__getattr__``, ``globals()``) is taken to have every name.
    """
    file, names = source_file(path)
    if file is None or file.suffix != ".py" or not names:
        return None
    try:
        module = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    bound = _bound(module)
    beside = file.name == "__init__.py" and any(file.parent.glob(f"{names[0]}*"))  # a module in another form, such as a compiled one
    if bound is None or beside or names[0] in bound:
        return None
    known = sorted(name for name in bound if not name.startswith("_"))
    return f"{path}: {file.name} has no {names[0]!r}{nearest(names[0], known)}"


def _bound(module: ast.Module) -> set[str] | None:
    """Every name that a module's source binds, wherever it does; None where it may bind others too."""
    bound: set[str] = set()
    for node in ast.walk(module):
        match node:
            case ast.ImportFrom(names=[ast.alias(name="*")]) | ast.FunctionDef(name="__getattr__"):
                return None
            case ast.Name(id="globals" | "exec" | "setattr" | "vars"):
                return None
            case (
                ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name)
            ):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.split(".")[0])
    return bound


def source_signature(path: str) -> SourceSignature | None:
    """What the source of the function or class at an import path says; None where no source has it."""
    file, names = source_file(path)
    if file is None or file.suffix != ".py" or not names:
        return None
    try:
        body: Any = ast.parse(file.read_text(encoding="utf-8"), filename=str(file)).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    node: Any = None
    for name in names:
        kinds = (ast.FunctionDef, ast.ClassDef)
        node = next((one for one in reversed(body) if isinstance(one, kinds) and one.name == name), None)
        if node is None:
            return None
        body = node.body
    return _function(file, node, method=len(names) > 1)


def _function(file: Path, node: ast.FunctionDef | ast.ClassDef, *, method: bool) -> SourceSignature | None:
    """A function's own keywords, or those of a class's ``__init__``; None where what calls it decides: a decorator, a base."""
    docstring = ast.get_docstring(node) or ""
    made_by: Any = node
    if isinstance(node, ast.ClassDef):
        made_by = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if made_by is None or node.decorator_list or made_by.decorator_list:
        return SourceSignature(file, node.lineno, {}, True, node.name, docstring)
    arguments = made_by.args
    positional = arguments.args[1 if method or made_by is not node else 0 :]
    with_default = len(arguments.defaults)
    keywords = {one.arg: place < len(positional) - with_default for place, one in enumerate(positional)}
    keywords |= {one.arg: default is None for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    names = {name.rstrip("_"): required for name, required in keywords.items()}
    return SourceSignature(file, node.lineno, names, arguments.kwarg is not None, f"{node.name}({ast.unparse(arguments)})", docstring)
