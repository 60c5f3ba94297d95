"""A user's own call of a pipeline, taken apart into rows so that it can be made again for more of them, or for some."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy
import torch
from torch import Tensor

from mmalign.types import UserError

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")  # rows of one prompt
OWN = {"prompt", "class_labels", "batch_size", "generator", "output_type", "return_dict", *COUNTS}  # what is told anew in each call
TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Asked:
    """What a user asked a pipeline for.

    prompts: one for each row. rows: of each row, the place of its prompt among those given. told: arguments that all rows share.
    by_row: arguments with an entry for each prompt. generator: the user's own, or None.
    """

    prompts: list[str]
    places: list[int]
    told: dict[str, Any]
    by_row: dict[str, Any]
    generator: Any
    output_type: str
    return_dict: bool

    def arguments(self, rows: Sequence[int]) -> dict[str, Any]:
        """Arguments of a call for some rows, in any number and order, that differ by row."""
        places = [self.places[row] for row in rows]
        found: dict[str, Any] = {}
        for name, value in self.by_row.items():
            if isinstance(value, Tensor):
                found[name] = value[torch.tensor(places, device=value.device)]
            else:
                found[name] = [value[place] for place in places]
        if len(rows) == 1:  # some pipelines take no list
            found = {name: value[0] if isinstance(value, list) and isinstance(value[0], str) else value for name, value in found.items()}
        return found


def asked(pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
    """A call's arguments by row. Errors: UserError for an output type that is not known here."""
    signature = inspect.signature(inspect.unwrap(type(pipe).__call__))
    try:
        given = dict(signature.bind(pipe, *args, **kwargs).arguments)
    except TypeError as error:
        raise UserError(f"{type(pipe).__name__}: {error}; it takes {', '.join(list(signature.parameters)[1:])}") from error
    given.pop("self", None)
    prompts, count = _prompts(given)
    each = int(next((given[name] for name in COUNTS if given.get(name)), 1))
    kind = given.get("output_type", signature.parameters["output_type"].default if "output_type" in signature.parameters else "pil")
    if kind not in TYPES:
        raise UserError(f"output_type: got {kind!r}, takes {', '.join(TYPES)}")
    told, by_row = {}, {}
    for name, value in given.items():
        if name in OWN:
            continue
        if _has_one_each(name, value, count):
            by_row[name] = value
        elif isinstance(value, str) and "prompt" in name and count * each > 1:
            by_row[name] = [value] * count
        else:
            told[name] = value
    told |= {name: 1 for name in COUNTS if name in given}
    if given.get("prompt") is None and "prompt" in signature.parameters:
        told["prompt"] = None
    places = [place for place in range(count) for _ in range(each)]
    latents = given.get("latents")
    if isinstance(latents, Tensor) and len(latents) == count * each:
        told.pop("latents", None)
        by_row.pop("latents", None)
        if each > 1:
            raise UserError(f"latents: got {len(latents)} for {each} outputs of each prompt, takes one output of each (repeat the prompts)")
        by_row["latents"] = latents
    return Asked([prompts[place] for place in places], places, told, by_row, given.get("generator"), kind, given.get("return_dict", True))


def _prompts(given: Mapping[str, Any]) -> tuple[list[str], int]:
    """Prompts and their number: as given, or class labels as text, or empty where the call has embeddings or none."""
    prompt = given.get("prompt")
    if prompt is not None:
        found = [prompt] if isinstance(prompt, str) else list(prompt)
    elif given.get("class_labels") is not None:
        labels = given["class_labels"]
        found = [str(label) for label in (labels if isinstance(labels, (list, tuple)) else torch.as_tensor(labels).flatten().tolist())]
    elif isinstance(given.get("prompt_embeds"), (Tensor, list)):
        found = [""] * len(given["prompt_embeds"])
    else:
        found = [""] * int(given.get("batch_size") or 1)
    if not found:
        raise UserError("prompt: got none, takes one or more")
    return found, len(found)


def _has_one_each(name: str, value: Any, count: int) -> bool:
    if isinstance(value, Tensor):
        return value.ndim > 1 and len(value) == count and ("embed" in name or "mask" in name or name == "latents")
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return False
    return "prompt" in name or "embed" in name or (count > 1 and "image" in name)


def seeds_of(generator: Any, rows: int, copies: int) -> list[int]:
    """``rows * copies`` seeds, drawn from a user's generator, or list of them; from torch's own where there is none."""
    if isinstance(generator, (list, tuple)):
        if len(generator) != rows:
            raise UserError(f"generator: got {len(generator)}, takes one for each of {rows} rows")
        return [seed for own in generator for seed in seeds_of(own, 1, copies)]
    device = "cpu" if generator is None else generator.device
    found: list[int] = torch.randint(2**62, (rows * copies,), generator=generator, device=device).tolist()
    return found


# What a pipeline answers


def fields(result: Any) -> dict[str, Any]:
    """The fields of what a pipeline returned, the outputs first; a tuple's by number."""
    return dict(result) if isinstance(result, Mapping) else {str(place): value for place, value in enumerate(result)}


def first(result: Any) -> Tensor:
    """The outputs in what a pipeline returned under ``output_type="pt"``, ``[B, ...]`` float."""
    found = next(iter(fields(result).values()))
    if isinstance(found, list):
        return torch.stack([one if isinstance(one, Tensor) else torch.as_tensor(numpy.asarray(one)) for one in found]).float()
    return torch.as_tensor(found).float()


def merged(results: Sequence[Any]) -> dict[str, Any]:
    """What several calls returned as one: fields with an entry for each row one after the other, outputs as ``first`` has them."""
    found: dict[str, Any] = {}
    for place, (name, value) in enumerate(fields(results[0]).items()):
        every = [fields(result)[name] for result in results]
        if place == 0:
            found[name] = torch.cat([first(result).detach() for result in results])
        elif isinstance(value, list):
            found[name] = [one for values in every for one in values]
        elif isinstance(value, Tensor) and value.ndim:
            found[name] = torch.cat(every)
        elif isinstance(value, numpy.ndarray) and value.ndim:
            found[name] = numpy.concatenate(every)
        else:
            found[name] = value
    return found


def picked(result: Any, outputs: Any, rows: list[int], of: int, asked: Asked, kind: type) -> Any:
    """Some of ``of`` rows of what a pipeline returned, with ``outputs`` in the first field's place, in the form that was asked for.

    kind: the class of the pipeline's own answer.
    """
    found = fields(result)
    for place, (name, value) in enumerate(found.items()):
        if place == 0:
            found[name] = outputs
        elif isinstance(value, (Tensor, numpy.ndarray)) and value.ndim and len(value) == of:
            found[name] = value[rows]
        elif isinstance(value, list) and len(value) == of:
            found[name] = [value[row] for row in rows]
    if not asked.return_dict:
        return tuple(found.values())
    if not issubclass(kind, dict):
        return tuple(found.values())
    return kind(**{field.name: found.get(field.name) for field in dataclass_fields(kind)}) if is_dataclass(kind) else kind(**found)


def as_type(outputs: Tensor, kind: str) -> Any:
    """Images ``[B, C, H, W]`` or videos ``[B, F, C, H, W]`` as ``pt``, ``np`` (channels last) or ``pil`` (a list; of lists for videos).

    What is neither (sound) is left as an array.
    """
    if kind in ("pt", "latent"):
        return outputs
    values = outputs.detach().cpu().float()
    if values.ndim not in (4, 5):
        return values.numpy()
    found = values.movedim(-3, -1).numpy()
    if kind == "np":
        return found
    return [[_pil(frame) for frame in video] for video in found] if found.ndim == 5 else [_pil(image) for image in found]


def _pil(image: Any) -> Any:
    from PIL import Image

    pixels = (image * 255).round().astype("uint8")
    return Image.fromarray(pixels.squeeze(-1), mode="L") if pixels.shape[-1] == 1 else Image.fromarray(pixels)
