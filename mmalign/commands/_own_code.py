"""Code that a model is made of and that is neither mmalign's nor an installed package's: what an export needs to be loaded elsewhere."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.rooms import absolute

KNOWN = ("mmalign", "diffusers", "transformers", "torch", "peft", "builtins", "transformers_modules", "diffusers_modules", "__main__")


class OwnCode(NamedTuple):
    """files: single modules of the user's. packages: folders of the user's, and installed packages; their names.

    imports: modules of components, which diffusers takes classes from only where they were imported before.
    """

    files: tuple[Path, ...]
    packages: tuple[str, ...]
    imports: tuple[str, ...]


def own_code(node: Mapping[str, Any], model: Any) -> OwnCode:
    """Of a policy's node, whose base may be made by a dotted name, and of the pipeline or model that came of it."""
    bases = [node[key] for key in ("pipeline", "model") if isinstance(node.get(key), Mapping)]
    components = list(getattr(model, "components", {}).values())  # of a pipeline
    classes = {type(part).__module__ for part in (model, *components) if part is not None}
    files, packages = dict[str, Path](), set[str]()
    paths = [absolute(name) for base in bases for name in _uses(base) if "." in name]
    for module in sorted({path.rpartition(".")[0] for path in paths} | classes):
        top = module.partition(".")[0]
        if top in KNOWN or top in sys.stdlib_module_names:
            continue
        place = Path(str(importlib.import_module(top).__file__ or top))
        if place.name == "__init__.py" or place.suffix != ".py" or "site-packages" in place.parts:
            packages.add(top)
        else:
            files[top] = place
    imports = [module for module in sorted(classes) if module.partition(".")[0] not in {*KNOWN, *sys.stdlib_module_names} - {"mmalign"}]
    return OwnCode(tuple(files.values()), tuple(sorted(packages)), tuple(imports))


def _uses(node: Any) -> Iterator[str]:
    """Every ``use`` in a node, at any depth."""
    if isinstance(node, Mapping):
        if isinstance(node.get("use"), str):
            yield node["use"]
        for value in node.values():
            yield from _uses(value)
