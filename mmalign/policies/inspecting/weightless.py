"""Models of a config without their weights, on ``meta``: from a folder, the hub's configs, or the table of shapes beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmalign.policies.language.models import gguf
from mmalign.policies.pipelines.calls.calling import quiet
from mmalign.policies.pipelines.loading.model_index import read_index, text_of
from mmalign.policies.twins.pipelines import twin
from mmalign.types import UserError

SHAPES = Path(__file__).with_name("shapes.json")
"""Hub id -> part -> its class and config, as the model's own files have them, for when the hub is out of reach."""


def _known(model: str) -> dict[str, Any]:
    return dict(json.loads(SHAPES.read_text(encoding="utf-8")).get(model, {}))


def _config_of(model: str, part: str, known: Mapping[str, Any]) -> dict[str, Any]:
    text, _ = text_of(model, f"{part}/config.json" if part else "config.json")
    config = known.get(part or "model") if text is None else json.loads(text)
    if config is None:
        known_to = ", ".join(json.loads(SHAPES.read_text(encoding="utf-8")))
        raise UserError(
            f"policy: the shapes of {model} are not known here: no folder or hub that can be reached has its "
            f"{f'{part}/' if part else ''}config.json; takes a folder, the hub, or one of {known_to}"
        )
    return dict(config)


@quiet()
def pipeline(model: Any, *, kind: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """A pipeline whose parts have the real shapes and no numbers; tokenizers and processors are small ones of the same class's twin.

    model: a hub id or folder; a pipeline is taken as it is, but for its type. Errors: UserError where the shape of a part is not known.
    """
    import diffusers
    import transformers

    if not isinstance(model, str):
        return model if dtype is None else model.to(dtype)
    index, known = read_index(model, kind=kind), _known(model)
    tiny = twin(index.kind)
    parts = {**tiny.components, **dict.fromkeys(name for name in index.without if name in tiny.components)}
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            continue
        config = _config_of(model, name, known)
        with torch.device("meta"):
            if isinstance(part, transformers.PreTrainedModel) and not isinstance(part, diffusers.ModelMixin):
                home = getattr(transformers, config.get("architectures", [type(part).__name__])[0])
                made = home(home.config_class.from_dict(config))
            else:
                home = getattr(diffusers, config.get("_class_name", type(part).__name__))
                made = home.from_config(config)
        parts[name] = made if dtype is None else made.to(dtype)
    made_pipe = type(tiny)(**parts)
    made_pipe.set_progress_bar_config(disable=True)
    return made_pipe


@quiet()
def language(model: Any, *, dtype: torch.dtype | None = None) -> Any:
    """A language or vision-language model with the real shapes and no numbers; a model is taken as it is, but for its type.

    Errors: UserError where its shape is not known.
    """
    import transformers

    if gguf.is_gguf(model):
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(gguf.config_of(gguf.place_of(model)), dtype=dtype or torch.float32)
    if not isinstance(model, str):
        return model if dtype is None else model.to(dtype)
    config = _config_of(model, "", _known(model))
    (name,) = config.get("architectures", ["?"])[:1]
    home = getattr(transformers, str(name), None)
    if home is None:
        raise UserError(f"policy.model: {model} is a {name}, which transformers {transformers.__version__} does not have")
    with torch.device("meta"):
        made = home(home.config_class.from_dict(config))
    wanted = dtype or getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    return made.to(wanted)
