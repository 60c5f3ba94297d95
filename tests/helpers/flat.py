"""Policies with their settings as one flat list of keywords: each goes into the record that has a field of its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import mmalign as mm
from mmalign.policies.settings import Memory, Schedule, TextMemory


def gathered(given: dict[str, Any], **records: Any) -> dict[str, Any]:
    """``{"steps": 3, "lora": ...}`` as ``{"schedule": {"steps": 3}, "lora": ...}``."""
    arguments = dict(given)
    for name, record in records.items():
        own = {field.name: arguments.pop(field.name) for field in fields(record) if field.name in arguments}
        if own:
            arguments[name] = {**arguments.get(name, {}), **own}
    return arguments


def diffusers(pipeline: Any, **given: Any) -> Any:
    return mm.policies.diffusers(pipeline, **gathered(given, schedule=Schedule, memory=Memory))


def transformers(*model: Any, **given: Any) -> Any:
    return mm.policies.transformers(*model, **gathered(given, memory=TextMemory))
