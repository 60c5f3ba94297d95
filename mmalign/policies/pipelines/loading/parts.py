"""Whether the parts of a pipeline have the tensors that its folder holds: what a file lacks stays without memory, or is random.

Parts of diffusers are compared with the headers of their files; parts of transformers, whose names in files may be older ones, by loading
their names once more without memory.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from mmalign.matching import MADE_ANEW, reading, refuse_length, refuse_names, refuse_unlike
from mmalign.types import UserError

OLD = re.compile(r"\.(query|key|value|proj_attn)\.(weight|bias)$")  # of attention, which diffusers renames while it loads


def refuse_unlike_parts(key: str, pipe: Any, name: str) -> None:
    """UserError for the first part of a pipeline, loaded from a folder or hub id ``name``, that differs from its files, or whose tokenizer
    cannot be used."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    folder = _folder(name)
    for part, module in pipe.components.items():
        if isinstance(module, PreTrainedTokenizerBase):
            refuse_length(f"{key}: {part}: {folder / part}", module)
        if not isinstance(module, nn.Module):
            continue
        place = folder / part
        if isinstance(module, PreTrainedModel) and (place / "config.json").is_file() and _files(place):
            options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, "device_map": "meta"}
            _, info = type(module).from_pretrained(place, **options)
            refuse_unlike(f"{key}: {part}", place, module, info)
        else:
            _refuse_unlike_file(f"{key}: {part}: {place}", module, _files(place))


def own_class(name: str) -> Any:
    """The class of a folder's pipeline where mmalign itself defines it (a world's); None where diffusers does, or nobody is known to.

    Errors: UserError for a class of another library, which a name cannot say.
    """
    import diffusers

    index = Path(name) / "model_index.json"
    with reading("policy.pipeline", name, "a pipeline, a folder or a hub id"):
        entries = dict(json.loads(index.read_text(encoding="utf-8"))) if index.is_file() else {}
    kind = entries.get("_class_name")
    if not isinstance(kind, str) or getattr(diffusers, kind, None) is not None:
        return None
    homes = {str(part[0]) for part in entries.values() if isinstance(part, list) and part}
    for module in sorted(home.rpartition(".")[0] for home in homes if home.startswith("mmalign.worlds.")):
        own = getattr(importlib.import_module(f"{module}.pipeline"), kind, None)
        if own is not None:
            return own
    raise UserError(
        f"policy.pipeline: {name} is a {kind}, a class that diffusers does not have; takes a function of yours that loads it: "
        "{use: MODULE.FUNCTION}, or the pipeline itself, in Python"
    )


def _folder(name: str) -> Path:
    """Where a pipeline's files are: a folder, or a hub id's in the cache."""
    if Path(name).is_dir():
        return Path(name)
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(name, local_files_only=True))


def _files(place: Path) -> list[Path]:
    """The safetensors of a part, those of a variant (``.fp16.``) only where there are no others."""
    every = sorted(place.glob("*.safetensors"))
    plain = [file for file in every if file.name.count(".") == 1]
    return plain or every


def _refuse_unlike_file(where: str, module: nn.Module, files: list[Path]) -> None:
    own = {name for name in module.state_dict() if not MADE_ANEW.search(name)}
    missing = {name for name, value in module.state_dict().items() if value.is_meta and name in own}
    stored = {name for file in files for name in _names(where, file)}
    ignored = [re.compile(pattern) for pattern in getattr(type(module), "_keys_to_ignore_on_load_unexpected", None) or ()]
    left = {name for name in stored - own if not (MADE_ANEW.search(name) or OLD.search(name) or any(one.search(name) for one in ignored))}
    renamed = any(OLD.search(name) for name in stored)
    if stored and not renamed:
        missing |= own - stored
    refuse_names(where, type(module).__name__, len(own), missing=missing, extra=left)


def _names(where: str, file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{where}: {file.name} cannot be read: {str(error).splitlines()[0]}") from error
