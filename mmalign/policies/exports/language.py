"""Trained language models as others load them: an adapter for peft, or the whole model, with the tokenizer.

As with pipelines (``policies.exports.pipelines``): written beside its place, loaded again, compared with the live model, and only
then put there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmalign.files import appearing
from mmalign.policies.adapters import Form, Wanted, refuse_taken, write_adapter
from mmalign.policies.language.drawing.handover import merged
from mmalign.policies.language.models import storage
from mmalign.policies.language.models.fitting import ROUNDING
from mmalign.policies.language.models.loading import SEEING
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import UserError


@torch.no_grad()
def save(
    policy: TransformersPolicy, folder: Path, *, base: Callable[[], Any], prompt: Any, card: Callable[[list[Form]], str] | None = None,
    name: str | None = None, beside: Sequence[Path] = (), form: Wanted | None = None,
) -> list[Form]:  # fmt: skip
    """Writes the parameters that ``policy`` has now to ``folder``, which appears whole or not at all; returns how to load them.

    ::

        adapter_config.json, adapter_model.safetensors    LoRA
        config.json, model.safetensors ...                without LoRA, or merged
        tokenizer.json ...                                with its chat template, and the processor of a model that sees
        README.md                                         what ``card`` says

    base: makes the model as it was before training. prompt: of the one forward that is compared, all logits of it. name: of the base
    model, for peft's config. beside: files of code that are put there too. form: ``merged`` adds LoRA to the weights, in their own type. A
    LoRA's scale is in its B, so that a reader of bare tensors has the trained delta as well. Heads are not written.

    Errors: UserError where something is at ``folder``, for a form that it cannot have, and where what was written does not give the live
    model again.
    """
    refuse_taken(folder)
    if form == "comfyui":
        raise UserError("export --comfyui: got a language model, takes a run of a pipeline with lora")
    if form == "merged" and policy.stored:
        raise UserError("export --merge: the adapter was trained on weights in 4 bits, and fits no others; takes the adapter")
    with appearing(folder) as place:
        lora = policy.sets.lora and form != "merged"
        made = _adapter(policy, place, name) if lora else whole_model(policy, place)
        (policy.chat.tokenizer if policy.chat.vision is None else policy.chat.vision.processor).save_pretrained(str(place))
        fresh: Any = base() if lora else None
        if policy.stored:
            storage.store(fresh.requires_grad_(False))  # the model that the adapter was trained on
        _compare(policy, made.load(place, fresh), prompt)
        beside_weights(place, made, beside, card)
    return [made]


def beside_weights(place: Path, form: Form, files: Sequence[Path], card: Callable[[list[Form]], str] | None) -> None:
    """Puts files of code, and the page of an export, beside its weights."""
    for file in files:
        shutil.copyfile(file, place / file.name)
    if card is not None:
        (place / "README.md").write_text(card([form]), encoding="utf-8")


def _adapter(policy: TransformersPolicy, place: Path, name: str | None) -> Form:
    def load(folder: Path, fresh: Any) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(fresh, str(folder))

    write_adapter(policy.model, place, folded=True, base=name, task="CAUSAL_LM")  # also of models that see, as peft and TRL have it
    code = ("from peft import PeftModel", "model = PeftModel.from_pretrained(model, folder)")
    return Form("peft", code, {"model": policy.model}, load)


def whole_model(policy: TransformersPolicy, place: Path) -> Form:
    """Writes a model's weights, LoRA in them added in; returns how to load them."""

    def load(folder: Path, fresh: Any) -> Any:
        return type(policy.model).from_pretrained(str(folder), dtype=policy.model.dtype)

    policy.model.save_pretrained(str(place), state_dict=merged(policy.model))
    home = auto_class(policy.model)
    code = (f"from transformers import {home}", f"model = {home}.from_pretrained(folder)")
    return Form("full", code, {"model": policy.model}, load)


def auto_class(model: Any) -> str:
    """The class of transformers that loads a model by its name."""
    sees = any(getattr(model.config, part, None) is not None for part in SEEING)
    return "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"


def _compare(policy: TransformersPolicy, fresh: Any, prompt: Any) -> None:
    """Errors: UserError where the loaded model's log-probabilities are not the live one's."""
    question = policy.chat.prompt(prompt)
    inputs = {} if policy.chat.vision is None else policy.chat.vision.inputs(question)
    arguments = {name: value.to(policy.device) for name, value in {"input_ids": torch.tensor([question.ids]), **inputs}.items()}
    fresh.to(policy.device).eval()
    there, here = (model(**arguments).logits.double().log_softmax(-1) for model in (fresh, policy.model))
    if bool(here.isnan().any()):
        raise UserError("export: this model's answers are not numbers: its weights have overflowed, so there is nothing to hand over")
    difference, allowed = float((there - here).abs().max()), ROUNDING.get(policy.model.dtype, 1e-4)
    if not difference <= allowed:
        raise UserError(f"export: the model, loaded again, is {difference:.2g} nats apart from the live one, more than {allowed:g}")
