"""The head of a model card, as the hub reads it: its library, its task, what it was made of, and what was measured."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.matching import HUB_ID

UNLICENSED = "# license: yours to choose, in the hub's ids (apache-2.0); the base model's licence may bind you"
HELD_OUT = {"type": "held-out", "name": "prompts of the run's evaluation"}


def metadata(
    *, name: str, base: str | None, model: Any, forms: Sequence[str], method: str, judges: Mapping[str, float], license: str | None
) -> str:
    """YAML of the fields that hold something; a base counts where it is a hub id, since a path says nothing to others.

    model: the pipeline or the language model. forms: of the export. judges: name -> the number after training, of what training did not
    see; NaN is left out. license: of the hub's ids (``apache-2.0``).
    """
    from huggingface_hub import EvalResult, ModelCardData

    lora = "full" not in forms[:1]
    of_hub = base if base is not None and "/" in base and HUB_ID.fullmatch(base) and not Path(base).exists() else None
    task = pipeline_tag(model)
    measured = [
        EvalResult(
            task_type=task, dataset_type=HELD_OUT["type"], dataset_name=HELD_OUT["name"], metric_type=judge, metric_name=judge,
            metric_value=round(value, 4),
        )
        for judge, value in judges.items()
        if not math.isnan(value)
    ]  # fmt: skip
    relation = "adapter" if lora else "finetune"
    more: dict[str, Any] = {"base_model_relation": relation} if of_hub else {}
    card = ModelCardData(
        license=license, library_name=library(model, lora=lora), base_model=of_hub, pipeline_tag=task,
        tags=["alignment", "mmalign", method, *(["lora"] if lora else [])], model_name=name if measured else None,
        eval_results=measured or None, **more,
    )  # fmt: skip
    head = str(card.to_yaml()).strip()
    return head if license is not None else f"{UNLICENSED}\n{head}"


def library(model: Any, *, lora: bool) -> str:
    """The library that loads an export."""
    if isinstance(getattr(model, "components", None), Mapping):
        return "diffusers"
    return "peft" if lora else "transformers"


def pipeline_tag(model: Any) -> str:
    """The hub's word for what a model does, by the arguments of a pipeline's call or the parts of a language model's configuration."""
    if not isinstance(getattr(model, "components", None), Mapping):
        config = model.config
        sees = any(getattr(config, part, None) is not None for part in ("vision_config", "vq_config"))
        return "image-text-to-text" if sees else "text-generation"
    call = inspect.signature(inspect.unwrap(type(model).__call__)).parameters
    given = "image" if "image" in call and call["image"].default is inspect.Parameter.empty else "text"
    given = "image" if "image" in list(call)[1:2] else given
    made = next((to for word, to in MADE.items() if word in call), "image")
    return f"{given}-to-{made}"


MADE = {"num_frames": "video", "video_length": "video", "audio_length_in_s": "audio", "audio_end_in_s": "audio"}
"""An argument of a pipeline's call -> what it then makes."""
