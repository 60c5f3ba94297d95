"""A trained policy as a folder of its own: what makes it, its trained parameters, and a hash of both, for who has no run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign.arguments.places import by_name
from mmalign.runs.folder import read_config
from mmalign.types import UserError

CONFIG, WEIGHTS, HASHES = "config.yaml", "model.safetensors", "hashes.json"


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Puts the three files into a folder that is there. config: its ``policy`` and ``method``. tensors: of trained parameters, by name."""
    import yaml
    from safetensors.torch import save_file

    own = {key: by_name(config[key]) for key in ("policy", "method") if key in config}
    (folder / CONFIG).write_text(yaml.safe_dump(own, sort_keys=False, allow_unicode=True), encoding="utf-8")
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, folder / WEIGHTS)
    hashes = {name: _hash(folder / name) for name in (CONFIG, WEIGHTS)}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def there(folder: Path) -> bool:
    """Whether a folder holds such a policy."""
    return (folder / HASHES).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the parameters. Errors: UserError for a file that is not what was written, and one that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        own = {name: _hash(folder / name) for name in (CONFIG, WEIGHTS)}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: cannot be read ({' '.join(str(error).split())})") from error
    if hashes != own:
        odd = next((name for name in own if not isinstance(hashes, dict) or hashes.get(name) != own[name]), HASHES)
        raise UserError(f"{folder / odd}: is not what was exported (its hash is another); takes the folder as `mmalign export` wrote it")
    try:
        return read_config(folder), load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({error})") from error


def _hash(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hasher.update(part)
    return hasher.hexdigest()
