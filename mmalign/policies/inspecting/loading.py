"""From a name to the pipeline to look at: a hub id, a folder, or a class of which a tiny twin is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.policies.pipelines.calls.calling import MEDIA, load, one_line, quiet
from mmalign.policies.pipelines.loading.unfit import reason
from mmalign.policies.twins import pipelines
from mmalign.types import UserError


class LoadedPipeline(NamedTuple):
    """A pipeline to look at: itself, arguments that stand in for what its call needs, and how a config names it."""

    pipe: Any
    trial_arguments: dict[str, Any]
    node: Any


@quiet()
def load_pipeline(model: str, *, dtype: str | None = None) -> LoadedPipeline:
    """A pipeline by hub id, folder, or the name of its class, of which a tiny twin is made.

    Errors: UserError for a class that diffusers does not have, a folder without ``model_index.json``, an id that cannot be loaded.
    """
    if model.isidentifier() and not Path(model).exists():
        kind = pipelines.pipeline_class(model)
        if why := reason(model):
            raise UserError(f"{model} is no policy: {why}")
        try:
            pipe = pipelines.twin(kind)
        except Exception as error:  # whatever a class of diffusers raises
            raise UserError(f"{model}: no tiny twin can be made of it, {one_line(error)}; takes a hub id or a folder") from error
        return LoadedPipeline(pipe, pipelines.call_arguments(pipe), f"hub/id-of-a-{model}")
    if Path(model).is_dir():
        index = Path(model) / "model_index.json"
        if not index.is_file():
            raise UserError(
                f"{model}: no model_index.json there; takes the folder of a diffusers pipeline, a hub id or the name of a class"
            )
        pipelines.pipeline_class(str(json.loads(index.read_text(encoding="utf-8")).get("_class_name")))
    try:
        pipe = load(model, dtype=dtype)
    except (AttributeError, ImportError, TypeError) as error:
        raise UserError(f"{model}: cannot be loaded, {one_line(error)}") from error
    return LoadedPipeline(pipe, {key: value for key, value in pipelines.call_arguments(pipe).items() if key in MEDIA}, model)
