"""A user's own call of a pipeline, taken apart into rows so that it can be made again for more of them, or for some."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy
import torch
from torch import Tensor

from mmalign.types import Prompt, UserError, columns_of, contents

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")  # rows of one prompt
OWN = {"prompt", "class_labels", "batch_size", "generator", "output_type", "return_dict", *COUNTS}  # what each call gets anew
TYPES = ("pil", "np", "pt", "latent")
MEDIUM = re.compile(r"(?!.*ip_adapter)(\w+_)?(image|video)")  # an argument with a picture or a video of each prompt, or one for all


@dataclass(frozen=True)
class UserCall:
    """A user's own call of a pipeline.

    prompts: one for each row. places: of each row, that of its prompt in the call. columns: of the prompts, an entry for each row.
    shared: arguments of all rows. media: those among them that are one picture, or one video, for all rows. by_row: arguments with an
    entry for each prompt. generator: the user's own, or None.
    """

    prompts: list[str]
    places: list[int]
    columns: dict[str, list[Any]]
    shared: dict[str, Any]
    media: dict[str, Any]
    by_row: dict[str, Any]
    generator: Any
    output_type: str
    return_dict: bool

    def arguments(self, rows: Sequence[int]) -> dict[str, Any]:
        """Arguments of a call for some rows, in any number and order, that differ by row."""
        places = [self.places[row] for row in rows]
        arguments: dict[str, Any] = {}
        for name, value in self.by_row.items():
            if isinstance(value, Tensor):
                arguments[name] = value[torch.tensor(places, device=value.device)]
            else:
                arguments[name] = [value[place] for place in places]
        if len(rows) == 1:  # some pipelines take no list
            arguments = {
                name: value[0] if isinstance(value, list) and isinstance(value[0], str) else value for name, value in arguments.items()
            }
        return arguments


def user_call(pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UserCall:
    """A call's arguments by row. Errors: UserError for an output type that is not known here."""
    signature = inspect.signature(inspect.unwrap(type(pipe).__call__))
    try:
        arguments = dict(signature.bind(pipe, *args, **kwargs).arguments)
    except TypeError as error:
        raise UserError(f"{type(pipe).__name__}: {error}; it takes {', '.join(list(signature.parameters)[1:])}") from error
    arguments.pop("self", None)
    prompts, count = _prompts(arguments)
    columns, prompts = columns_of(prompts), contents(prompts)
    each = int(next((arguments[name] for name in COUNTS if arguments.get(name)), 1))
    kind = arguments.get("output_type", signature.parameters["output_type"].default if "output_type" in signature.parameters else "pil")
    if kind not in TYPES:
        raise UserError(f"output_type: got {kind!r}, takes {', '.join(TYPES)}")
    shared, by_row = {}, {}
    for name, value in arguments.items():
        if name in OWN:
            continue
        if _has_one_each(name, value, count):
            by_row[name] = value
        elif isinstance(value, str) and "prompt" in name and count * each > 1:
            by_row[name] = [value] * count
        else:
            shared[name] = value
    shared |= {name: 1 for name in COUNTS if name in arguments}
    if arguments.get("prompt") is None and "prompt" in signature.parameters:
        shared["prompt"] = None
    places = [place for place in range(count) for _ in range(each)]
    media = {name: value for name, value in shared.items() if MEDIUM.fullmatch(name) and value is not None}
    latents = arguments.get("latents")
    if isinstance(latents, Tensor) and len(latents) == count * each:
        shared.pop("latents", None)
        by_row.pop("latents", None)
        if each > 1:
            raise UserError(f"latents: got {len(latents)} for {each} outputs of each prompt, takes one output of each (repeat the prompts)")
        by_row["latents"] = latents
    of_rows = {name: [values[place] for place in places] for name, values in columns.items()}
    generator, as_record = arguments.get("generator"), arguments.get("return_dict", True)
    return UserCall([prompts[place] for place in places], places, of_rows, shared, media, by_row, generator, kind, as_record)


def without_columns(value: Any) -> Any:
    """An argument of a call as the pipeline takes it: a prompt, or a list of them, without columns."""
    if isinstance(value, list) and any(isinstance(item, Prompt) for item in value):
        return contents(value)
    return value.content if isinstance(value, Prompt) else value


def repeated(name: str, value: Any, rows: int) -> Any:
    """One picture or video as one for each of so many rows: a tensor ``[rows, ...]``, or a list."""
    if isinstance(value, Tensor):
        alone = value.ndim < (5 if name.endswith("video") else 4)
        return (value[None] if alone else value).repeat(rows, *[1] * (value.ndim - 1 + alone))
    if name.endswith("image") and isinstance(value, (list, tuple)):
        return [*value] * rows
    return [value] * rows


def _prompts(arguments: Mapping[str, Any]) -> tuple[list[Any], int]:
    """Prompts and their number: as given, or class labels as text, or empty where the call has embeddings or none."""
    prompt = arguments.get("prompt")
    if prompt is not None:
        prompts = [prompt] if isinstance(prompt, (str, Prompt)) else list(prompt)
    elif arguments.get("class_labels") is not None:
        labels = arguments["class_labels"]
        prompts = [str(label) for label in (labels if isinstance(labels, (list, tuple)) else torch.as_tensor(labels).flatten().tolist())]
    elif isinstance(arguments.get("prompt_embeds"), (Tensor, list)):
        prompts = [""] * len(arguments["prompt_embeds"])
    else:
        prompts = [""] * int(arguments.get("batch_size") or 1)
    if not prompts:
        raise UserError("prompt: got none, takes one or more")
    return prompts, len(prompts)


def _has_one_each(name: str, value: Any, count: int) -> bool:
    if isinstance(value, Tensor) and MEDIUM.fullmatch(name):
        return count > 1 and len(value) == count and value.ndim == (5 if name.endswith("video") else 4)
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
    seeds: list[int] = torch.randint(2**62, (rows * copies,), generator=generator, device=device).tolist()
    return seeds


# What a pipeline returns


def fields(result: Any) -> dict[str, Any]:
    """The fields of what a pipeline returned, the outputs first; a tuple's by number."""
    return dict(result) if isinstance(result, Mapping) else {str(place): value for place, value in enumerate(result)}


def outputs_of(result: Any) -> Tensor:
    """The outputs in what a pipeline returned under ``output_type="pt"``, ``[B, ...]`` float."""
    outputs = next(iter(fields(result).values()))
    if isinstance(outputs, list):
        return torch.stack([one if isinstance(one, Tensor) else torch.as_tensor(numpy.asarray(one)) for one in outputs]).float()
    return torch.as_tensor(outputs).float()


def merged(results: Sequence[Any]) -> dict[str, Any]:
    """What several calls returned as one: fields with an entry for each row one after the other, outputs as ``outputs_of`` has them."""
    joined: dict[str, Any] = {}
    for place, (name, value) in enumerate(fields(results[0]).items()):
        every = [fields(result)[name] for result in results]
        if place == 0:
            joined[name] = torch.cat([outputs_of(result).detach() for result in results])
        elif isinstance(value, list):
            joined[name] = [one for values in every for one in values]
        elif isinstance(value, Tensor) and value.ndim:
            joined[name] = torch.cat(every)
        elif isinstance(value, numpy.ndarray) and value.ndim:
            joined[name] = numpy.concatenate(every)
        else:
            joined[name] = value
    return joined


def selected(result: Any, outputs: Any, rows: list[int], of: int, call: UserCall, kind: type) -> Any:
    """Some of ``of`` rows of what a pipeline returned, with ``outputs`` in the first field's place, in the form of the user's call.

    kind: the class of what the pipeline itself returns.
    """
    columns = fields(result)
    for place, (name, value) in enumerate(columns.items()):
        if place == 0:
            columns[name] = outputs
        elif isinstance(value, (Tensor, numpy.ndarray)) and value.ndim and len(value) == of:
            columns[name] = value[rows]
        elif isinstance(value, list) and len(value) == of:
            columns[name] = [value[row] for row in rows]
    if not call.return_dict:
        return tuple(columns.values())
    if not issubclass(kind, dict):
        return tuple(columns.values())
    return kind(**{field.name: columns.get(field.name) for field in dataclass_fields(kind)}) if is_dataclass(kind) else kind(**columns)


def as_type(outputs: Tensor, kind: str) -> Any:
    """Images ``[B, C, H, W]`` or videos ``[B, F, C, H, W]`` as ``pt``, ``np`` (channels last) or ``pil`` (a list; of lists for videos).

    What is neither (sound) is left as an array.
    """
    if kind in ("pt", "latent"):
        return outputs
    values = outputs.detach().cpu().float()
    if values.ndim not in (4, 5):
        return values.numpy()
    arrays = values.movedim(-3, -1).numpy()
    if kind == "np":
        return arrays
    return [[_pil(frame) for frame in video] for video in arrays] if arrays.ndim == 5 else [_pil(image) for image in arrays]


def _pil(image: Any) -> Any:
    from PIL import Image

    pixels = (image * 255).round().astype("uint8")
    return Image.fromarray(pixels.squeeze(-1), mode="L") if pixels.shape[-1] == 1 else Image.fromarray(pixels)
