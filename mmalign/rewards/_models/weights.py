"""Published weights: found here or on the hub, their checksum compared, never unpickled beyond tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.devices import default_device
from mmalign.matching import message_of, reading, refuse_nowhere, refuse_unlike
from mmalign.types import UserError

ALIGNMENT = 64  # bytes, of what torch allocates on a CPU


def device_of(device: str | None) -> torch.device:
    """The device asked for; a GPU if there is one."""
    return torch.device(device) if device else default_device()


def weight_file(key: str, name: str, *, sha256: str | None = None) -> Path:
    """The file that ``name`` means: a path, or ``organisation/repository/file`` on the hub, which is downloaded once.

    Errors: UserError that begins with ``key``, for a file that is not there, or whose SHA-256 is another.
    """
    path = Path(name)
    if not path.is_file():
        path = _downloaded(key, name)
    if sha256 is not None:
        with open(path, "rb") as file:
            digest = _digest(file)
        if digest != sha256.lower():
            raise UserError(f"{key}: {path} has SHA-256 {digest}, takes {sha256}")
    return path


def _downloaded(key: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    parts = name.split("/")
    why = "takes a file, or ORGANISATION/REPOSITORY/FILE on the hub"
    if len(parts) < 3 or name.startswith((".", "/")) or not all(parts):
        raise UserError(f"{key}: no such file: {name}; {why}")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: got {name}, {why}: {message_of(error)}") from error


def tensors(key: str, path: Path) -> dict[str, Tensor]:
    """The state dict in a file (safetensors, or torch's format with tensors alone; ``state_dict`` inside is taken out).

    Errors: UserError for a file that holds none.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise for a damaged file
        raise UserError(f"{key}: {path} cannot be read as weights: {message_of(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key}: {path} holds {type(state).__name__}, takes a state dict")
    return dict(state)


def filled(key: str, module: nn.Module, state: Mapping[str, Tensor], *, unused: tuple[str, ...] = (), assign: bool = False) -> nn.Module:
    """The module with a state dict in it, in evaluation mode, without gradients of its own.

    unused: beginnings of names that may be there and are not taken. assign: the module's tensors become those of the state dict, for
    modules made without memory.

    Errors: UserError that names what is missing, left over, or
    of another shape.
    """
    state = {name: value for name, value in state.items() if not name.startswith(unused or ("\0",))}
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not known" for name in state if name not in own]
    wrong += [
        f"{name} is {list(state[name].shape)}, takes {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{key}: weights of another model: {wrong[0]}{more}")
    module.load_state_dict(dict(state), assign=assign)
    return module.eval().requires_grad_(False)


def aligned(value: Tensor) -> Tensor:
    """A tensor as it is, or a copy where a file that is mapped has put it between two addresses that torch would give it.

    Products of matrices take other paths, with other last bits, by where their memory starts: a score would depend on the length of a
    file's header.
    """
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


def pretrained(key: str, kind: Any, weights: str, what: str, *, optional: tuple[str, ...] = ()) -> Any:
    """A model of a class of transformers, all of whose tensors are in a folder or on the hub.

    what: is taken, for messages. optional: beginnings of names that may be missing, because nothing here reads them. Heads that the class
    has no part for may be left over.

    Errors: UserError that begins with ``key``.
    """
    refuse_nowhere(key, weights, what)
    with reading(key, weights, f"a folder or a hub id of {what}"):
        model, info = kind.from_pretrained(weights, output_loading_info=True, ignore_mismatched_sizes=True)
    refuse_unlike(key, weights, model, info, optional=optional, parts=True)
    return model


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
