"""Models in GGUF files, as llama.cpp and ollama keep them: read by transformers, unpacked from their blocks of a few bits.

What is loaded is a model as any other, in float32 or the type that is asked for; its weights are those of the file, which were rounded
when it was made. Its tokenizer and chat template are the file's too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.matching import reading
from mmalign.types import UserError

ENDING, MAGIC = ".gguf", b"GGUF"
TAKES = "a GGUF file of a language model that transformers reads, or the folder or hub id that it was made of"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


class Place(NamedTuple):
    """Where a GGUF file is: a folder or a hub id, and its name there. package: PACKAGE, or PACKAGE/FOLDER, where that folder is in one."""

    home: str
    file: str
    package: str = ""

    def __str__(self) -> str:
        """What it is called on any machine that has it: in a package by the package, elsewhere by its path or hub id."""
        return f"{self.package or self.home}/{self.file}"


def is_gguf(model: Any) -> bool:
    """Whether a model is given as a GGUF file: ``x.gguf``, ``{gguf: path}``, or a folder that holds such files and no model else."""
    if isinstance(model, Mapping):
        return set(model) == {"gguf"}
    if not isinstance(model, str):
        return False
    return model.endswith(ENDING) or (not (Path(model) / "config.json").is_file() and bool(_inside(Path(model))))


def place_of(model: str | Mapping[str, Any]) -> Place:
    """Where the file is that ``is_gguf`` has found to be given.

    A path, a folder with one such file, ``PACKAGE/FILE.gguf`` of an installed package, or ``ORGANISATION/NAME/FILE.gguf`` of the hub.
    Errors: UserError for none, for one of several that are not told apart, for a part of one, and for a file of another kind.
    """
    key = "policy.model.gguf" if isinstance(model, Mapping) else "policy.model"
    name = model["gguf"] if isinstance(model, Mapping) else model
    if not isinstance(name, str) or not name:
        raise UserError(f"{key}: got {name!r}, takes the path of a GGUF file")
    path, package = _path(name)
    if path.is_dir():
        there = _inside(path)
        if len(there) != 1:
            names, more = ", ".join(there[:6]), f", and {len(there) - 6} more" if len(there) > 6 else ""
            example = f", {path / there[0]}" if there else ""
            raise UserError(
                f"{key}: {name} holds {len(there)} GGUF files{f' ({names}{more})' if there else ''}, takes the path of one{example}"
            )
        path = path / there[0]
    if PART.search(path.name):
        raise UserError(f"{key}: {name} is a part of a model, takes a whole one: llama-gguf-split --merge {path.name} WHOLE.gguf")
    if path.is_file():
        with path.open("rb") as file:
            if (start := file.read(len(MAGIC))) != MAGIC:
                raise UserError(f"{key}: {path} is no GGUF file: it begins with {start!r}, takes one that begins with {MAGIC!r}")
        return Place(str(path.parent), path.name, package)
    of_hub = name.split("/")
    if len(of_hub) < 3 or not all(of_hub) or name.startswith("."):
        takes = "takes a GGUF file, PACKAGE/FILE.gguf of an installed package, or ORGANISATION/NAME/FILE.gguf of the hub"
        raise UserError(f"{key}: got {name!r}, {takes}: no such file")
    return Place("/".join(of_hub[:2]), "/".join(of_hub[2:]))


def options(place: Place) -> dict[str, Any]:
    """What ``from_pretrained`` of transformers' models takes for such a file. Errors: UserError without the package ``gguf``."""
    if find_spec("gguf") is None:
        raise UserError(f"policy.model: {place.file} needs the package gguf, which is not installed: pip install 'mmalign[chat]'")
    return {"gguf_file": place.file, **unpacked()}


def config_of(place: Place) -> Any:
    """The configuration in a file. Errors: UserError for an architecture that transformers does not read."""
    from transformers import AutoConfig

    options(place)
    with reading("policy.model", str(place), TAKES):
        return AutoConfig.from_pretrained(place.home, gguf_file=place.file)


def code_of(place: Place, home: str) -> list[str]:
    """The lines that load such a model as a user would. home: the class of transformers that does."""
    more = ", quantization_config=GgufConfig(dequantize=True)" if unpacked() else ""
    names = f"{home}, GgufConfig" if unpacked() else home
    where, there = list[str](), repr(place.home)
    if place.package:
        package, *folders = place.package.split("/")
        inside = "/".join([*folders, place.file])
        where = [
            "from importlib.util import find_spec",
            "from pathlib import Path",
            f"places = [Path(place) for place in find_spec({package!r}).submodule_search_locations]  # of this installed package",
            f"file = next(place / {inside!r} for place in places if (place / {inside!r}).is_file())",
        ]
        there = "str(file.parent)"
    return [
        *where,
        f"from transformers import {names}  # with the package gguf",
        f"model = {home}.from_pretrained({there}, gguf_file={place.file!r}{more})",
    ]


def unpacked() -> dict[str, Any]:
    """That weights are unpacked also where there is a kernel for packed ones, which no adapter goes onto."""
    try:
        from transformers import GgufConfig
    except ImportError:  # an earlier one, which always unpacks
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _path(name: str) -> tuple[Path, str]:
    """The path of a file or folder, and PACKAGE or PACKAGE/FOLDER where there is none of that name but a package that has it; imports
    nothing."""
    package, _, rest = name.partition("/")
    if not Path(name).exists() and rest and package.isidentifier() and (found := find_spec(package)) is not None:
        inside = (Path(home) / rest for home in found.submodule_search_locations or ())
        if (path := next((path for path in inside if path.is_file()), None)) is not None:
            return path, name.rpartition("/")[0]
    return Path(name), ""


def _inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{ENDING}") if path.is_file())
