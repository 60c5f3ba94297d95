"""Whether a checkpoint can be read, and holds the tensors that a model has: none missing, none of another shape, none left over."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmalign.types import UserError

MADE_ANEW = re.compile(r"(^|\.)(position_ids|inv_freq|original_inv_freq|masked_bias|attn\.bias|num_batches_tracked)$")
"""Buffers that a model computes by itself and that some files hold, or lack."""
SHOWN, LONG = 3, 240  # names in a list, characters of somebody else's message
ADAPTERS = ("adapter_config.json", "pytorch_lora_weights.safetensors", "peft")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@contextmanager
def reading(key: str, name: Any, what: str) -> Iterator[None]:
    """Around what a library reads from a folder, a file or a hub id: whatever it raises is a UserError of a line that begins with ``key``.

    what: is taken.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files make libraries raise anything: TypeError, AttributeError, and tokenizers a bare Exception
        raise UserError(f"{key}: got {str(name)!r}, takes {what}: {message_of(error)}") from error


def message_of(error: BaseException) -> str:
    """What an error says, in one line that can be read."""
    words = " ".join(str(error).split())
    return (words if len(words) <= LONG else f"{words[:LONG]}...") or type(error).__name__


def refuse_nowhere(key: str, name: str, what: str) -> None:
    """UserError for a name that is no hub id, where there is no folder of that name either. what: is taken."""
    if not HUB_ID.fullmatch(name) and not (name and Path(name).exists()):
        raise UserError(f"{key}: got {name!r}, takes a folder or a hub id (ORGANISATION/NAME) of {what}: no such folder")


def refuse_unfinished(key: str, name: str) -> None:
    """UserError for a run, or a folder with an adapter alone, where a whole model is taken: which says what to write in its place."""
    place, kind = Path(name), key.rpartition(".")[2]
    if (place / "config.yaml").is_file() and (place / "checkpoints").is_dir():
        raise UserError(
            f"{key}: {name} is a run; takes the {kind} that it trained, with lora: {{from: {name}}} (start: {name}, where it has no LoRA)"
        )
    adapter = next((file for file in ADAPTERS if (place / file).exists()), None)
    if adapter is not None and not any((place / file).is_file() for file in ("model_index.json", "config.json")):
        merged = f", or {place / 'merged'}" if (place / "merged" / "model_index.json").is_file() else ""
        raise UserError(f"{key}: {name} holds an adapter alone ({adapter}); takes its {kind}, with lora: {{from: {name}}}{merged}")


def refuse_length(key: str, tokenizer: Any) -> None:
    """UserError for a tokenizer whose longest text is no number, which it would first find out where it reads one."""
    length = getattr(tokenizer, "model_max_length", 0)  # somebody's own reader need not have one
    if not isinstance(length, (int, float)) or isinstance(length, bool) or length != length:
        raise UserError(f"{key}: its tokenizer config says model_max_length {length!r}, takes a number of tokens")


def refuse_unlike(
    key: str, place: Any, model: Any, info: Mapping[str, Any], *, optional: tuple[str, ...] = (), parts: bool = False
) -> None:
    """UserError where a file and a model differ, by what loading says (``missing_keys``, ``unexpected_keys``, ``mismatched_keys``).

    Weights that are tied to others, and buffers that are made anew, count neither way. optional: beginnings of names that may be missing.
    parts: the model may be the body of a checkpoint with heads, parts of which it has none.
    """
    own = [*(name for name, _ in model.named_parameters()), *(name for name in _buffers(model))]
    missing = {name for name in info["missing_keys"] if not MADE_ANEW.search(name) and not name.startswith(optional or ("\0",))}
    shapes = {str(entry[0]): f"{entry[0]} {list(entry[1])} for {list(entry[2])}" for entry in info.get("mismatched_keys") or ()}
    tops = {name for name, _ in model.named_children()}
    extra = {name for name in info["unexpected_keys"] if not MADE_ANEW.search(name) and (not parts or name.partition(".")[0] in tops)}
    refuse_names(f"{key}: {place}", type(model).__name__, len(own), missing=missing - shapes.keys(), extra=extra, shapes=shapes.values())


def refuse_names(
    where: str, kind: str, count: int, *, missing: Collection[str], extra: Collection[str], shapes: Iterable[str] = ()
) -> None:
    """UserError that counts what is there of a model's ``count`` tensors, and names what is missing, of another shape, and left over."""
    odd = {"missing": sorted(missing), "of another shape": sorted(shapes), "not known": sorted(extra)}
    if not any(odd.values()):
        return
    matched = count - len(odd["missing"]) - len(odd["of another shape"])
    words = [f"{what}: {', '.join(names[:SHOWN])}{_more(names)}" for what, names in odd.items() if names]
    raise UserError(f"{where}: {matched} of {count} tensors of {kind} are there; {'; '.join(words)}; takes a whole checkpoint of it")


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""


def _buffers(model: Any) -> list[str]:
    """Names of buffers that are written to files."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in model.state_dict() if name not in parameters and not MADE_ANEW.search(name)]
