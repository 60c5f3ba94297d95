"""Trained weights as others load them: LoRA for diffusers and for peft, whole pipelines for ``from_pretrained``.

Everything is written beside its place, loaded again into a fresh pipeline and compared with the live model, and only then put
there. Compared are the weights, bit for bit in the type they were loaded in, and the denoisers' answers to what the live pipeline
asked them at its first step: the same latents and the same embeddings. Answers may differ by ``TOLERANCE`` of their largest number.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mmalign.files import appearing
from mmalign.policies.adapters import (
    Form,
    Wanted,
    adapter,
    lora_layers,
    lora_weights,
    merged,
    plain_config,
    refuse_taken,
    write_adapter,
)
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.exports.comfyui import keyed
from mmalign.policies.pipelines.calls.calling import quiet
from mmalign.policies.pipelines.calls.interception import Finished
from mmalign.types import UserError

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


class DenoiserCall(NamedTuple):
    """What a denoiser was asked, and what it answered."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answers: list[Tensor]


@torch.no_grad()
def export(
    policy: DiffusersPolicy, folder: Path, *, base: Callable[[], Any], prompt: str = "", card: Callable[[list[Form]], str] | None = None,
    beside: Sequence[Path] = (), form: Wanted | None = None,
) -> list[Form]:  # fmt: skip
    """Writes the parameters that ``policy`` has now to ``folder``, which appears whole or not at all; returns how to load them.

    ::

        pytorch_lora_weights.safetensors     LoRA, where the pipeline has load_lora_weights
        peft/transformer/                    LoRA: adapter_config.json, adapter_model.safetensors
        merged/                              LoRA in the weights, where the pipeline has no load_lora_weights
        comfyui/transformer.safetensors      LoRA by ComfyUI's names, where ``form`` is comfyui
        model_index.json ...                 without LoRA, or merged: the pipeline's save_pretrained
        README.md                            what ``card`` says of these forms

    base: makes the pipeline as it was before training, to load the LoRA into. prompt: of the one call that is compared. beside: files
    of code that are put there too. form: ``merged``: the whole pipeline, LoRA in its weights; ``comfyui``: that file too. A LoRA's scale is
    in its B, so that a reader of bare tensors has the trained delta as well. Needs room for a second denoiser on the policy's device.

    Errors: UserError where something is at ``folder``, for ``comfyui`` without LoRA or of a model that has no such names, and where what
    was written does not give the live model again.
    """
    refuse_taken(folder)
    if policy.acts_on.get("storage"):
        raise UserError("export: this policy keeps its weights rounded, which is not what users load it onto; takes one without storage")
    calls = _first_calls(policy, prompt)
    with appearing(folder) as place:
        forms = _forms(policy, place, form)
        for made in forms:
            _compare(made, made.load(place, None if made.name == "full" else base()), calls)
        for file in beside:
            shutil.copyfile(file, place / file.name)
        if card is not None:
            (place / "README.md").write_text(card(forms), encoding="utf-8")
    return forms


# ---- writing


def _forms(policy: DiffusersPolicy, place: Path, form: Wanted | None) -> list[Form]:
    if form == "comfyui" and not policy.sets.lora:
        raise UserError("export --comfyui: this run trained all weights, and the file is of LoRA; takes a run with lora")
    if not policy.sets.lora:
        return [_whole(policy.pipe, policy.denoisers, place, "")]
    if form == "merged":
        return [_whole(policy.pipe, {name: merged(module) for name, module in policy.denoisers.items()}, place, "")]
    return [*_lora_forms(policy, place), *([_comfyui(policy.denoisers, place)] if form == "comfyui" else [])]


def _lora_forms(policy: DiffusersPolicy, place: Path) -> list[Form]:
    pipe, modules = policy.pipe, policy.denoisers
    forms = []
    if _loads_lora(pipe, modules):
        forms.append(_diffusers_lora(pipe, modules, place))
    forms.append(_peft_lora(modules, place))
    if forms[0].name != "diffusers":
        forms.append(_whole(pipe, {name: merged(module) for name, module in modules.items()}, place, "merged"))
    return forms


def _loads_lora(pipe: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the pipeline's own loader takes LoRA for each of these; for a second expert only Wan's does."""
    save = getattr(type(pipe), "save_lora_weights", None)
    parameters = inspect.signature(save).parameters if save is not None else {}
    wan = any(kind.__name__ == "WanLoraLoaderMixin" for kind in type(pipe).__mro__)
    return all(f"{name}_lora_layers" in parameters or (name == "transformer_2" and wan) for name in modules)


def _diffusers_lora(pipe: Any, modules: Mapping[str, nn.Module], place: Path) -> Form:
    """``pytorch_lora_weights.safetensors`` at a scale of 1, which is also in its header; a second expert in a folder of its own."""

    def options(name: str) -> dict[str, Any]:
        return {"load_into_transformer_2": True} if name == "transformer_2" else {}

    def load(folder: Path, fresh: Any) -> Any:
        with quiet():  # the encoders' LoRA, of which there is none
            for name in modules:
                fresh.load_lora_weights(str(folder / name if options(name) else folder), **options(name))
        return fresh

    code = []
    for name, module in modules.items():
        weights, config = adapter(module, folded=True)
        key = "transformer" if options(name) else name
        layers = {f"{key}_lora_layers": weights, f"{key}_lora_adapter_metadata": plain_config(config.to_dict())}
        type(pipe).save_lora_weights(str(place / name if options(name) else place), **layers)
        code.append(
            f'pipe.load_lora_weights(f"{{folder}}/{name}", load_into_transformer_2=True)'
            if options(name)
            else "pipe.load_lora_weights(folder)"
        )
    return Form("diffusers", tuple(code), dict(modules), load)


def _peft_lora(modules: Mapping[str, nn.Module], place: Path) -> Form:
    from peft import PeftModel

    def load(folder: Path, fresh: Any) -> Any:
        for name in modules:
            PeftModel.from_pretrained(fresh.components[name], str(folder / "peft" / name))
        return fresh

    for name, module in modules.items():
        write_adapter(module, place / "peft" / name, folded=True)
    lines = [f'PeftModel.from_pretrained(pipe.{name}, f"{{folder}}/peft/{name}")  # in place' for name in modules]
    return Form("peft", ("from peft import PeftModel", *lines), dict(modules), load)


def _comfyui(modules: Mapping[str, nn.Module], place: Path) -> Form:
    """A file of each denoiser; a second expert of Wan is a file of its own there too."""
    from safetensors.torch import save_file

    def options(name: str) -> dict[str, Any]:
        return {"load_into_transformer_2": True} if name == "transformer_2" else {}

    def load(folder: Path, fresh: Any) -> Any:
        for name in modules:
            fresh.load_lora_weights(str(folder / "comfyui"), weight_name=f"{name}.safetensors", **options(name))
        return fresh

    (place / "comfyui").mkdir()
    for name, module in modules.items():
        save_file(keyed(module, name), str(place / "comfyui" / f"{name}.safetensors"), metadata={"format": "pt"})
    code = [
        f'pipe.load_lora_weights(f"{{folder}}/comfyui", weight_name="{name}.safetensors"'
        f"{', load_into_transformer_2=True' if options(name) else ''})"
        for name in modules
    ]
    return Form("comfyui", tuple(code), dict(modules), load)


def _whole(pipe: Any, modules: dict[str, nn.Module], place: Path, under: str) -> Form:
    """``save_pretrained`` of the pipeline with these denoisers; the live one is not touched."""
    whole = copy.copy(pipe)
    whole.register_modules(**modules)
    whole.save_pretrained(str(place / under), safe_serialization=True)
    dtype = next(next(iter(modules.values())).parameters()).dtype

    def load(folder: Path, fresh: Any) -> Any:
        return type(pipe).from_pretrained(str(folder / under), dtype=dtype)

    kind = type(pipe)
    home = "diffusers" if kind.__module__.startswith("diffusers.") else kind.__module__
    at = f'f"{{folder}}/{under}"' if under else "folder"
    return Form("full", (f"from {home} import {kind.__name__}", f"pipe = {kind.__name__}.from_pretrained({at})"), modules, load)


# ---- comparing


def _first_calls(policy: DiffusersPolicy, prompt: str) -> dict[str, DenoiserCall]:
    """What the pipeline asks each of its denoisers first, in the call of the policy with the pipeline's own scheduler."""
    calls: dict[str, DenoiserCall] = {}

    def listen(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if name not in calls:
                args, kwargs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, (args, kwargs))
                calls[name] = DenoiserCall(args, kwargs, [answer.clone() for answer in _answers(output)])
            if len(calls) == len(policy.denoisers):
                raise Finished

        return hook

    prompt = prompt or policy.caller.example
    with ExitStack() as hooks:
        for name, module in policy.denoisers.items():
            hooks.enter_context(module.register_forward_hook(listen(name), with_kwargs=True))
        policy.caller.until_finished([prompt], [0], None, [prompt])
    return calls


def _answers(output: Any) -> list[Tensor]:
    values = list(output.values()) if isinstance(output, Mapping) else output
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _compare(form: Form, fresh: Any, calls: Mapping[str, DenoiserCall]) -> None:
    """Errors: UserError where a denoiser that was loaded is another than the one it was written from."""
    for name, module in form.modules.items():
        loaded, what = fresh.components[name].eval(), f"export: the {form.name} form of {name}, loaded again,"
        if form.name == "comfyui":
            _compare_deltas(what, lora_layers(loaded), lora_layers(module))
        else:
            _compare_tensors(what, _facts(loaded), _facts(module))
        if name not in calls:  # an expert that this call did not reach
            continue
        device = next(module.parameters()).device
        answers = _answers(loaded.to(device)(*calls[name].args, **calls[name].kwargs))
        worst = max(_distance(a, b) for a, b in zip(answers, calls[name].answers, strict=True))
        allowed = TOLERANCE[next(p.dtype for key, p in module.named_parameters() if "lora_" not in key)]
        if not worst <= allowed:
            raise UserError(f"{what} answers {worst:.2g} (of the largest number) apart from the live model, more than {allowed:g}")


def _compare_tensors(what: str, there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    if there.keys() != here.keys():
        odd = sorted(there.keys() ^ here.keys())[:3]
        raise UserError(f"{what} has other parameters than the live model: {', '.join(odd)}")
    for key, value in here.items():
        if not torch.equal(value.cpu().to(there[key].dtype), there[key].cpu()):
            raise UserError(f"{what} differs from the live model in {key}")


def _compare_deltas(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Of a form that may hold more layers, of more ranks: ``alpha / rank * B A`` of each, up to the order of a sum; of the rest it is 0."""
    for name in sorted(there.keys() | here.keys()):
        one, other = (
            layers[name].get_delta_weight(layers[name].active_adapters[0]) if name in layers else None for layers in (there, here)
        )
        if one is not None and other is not None:
            apart = _distance(one.cpu(), other.cpu()) > TOLERANCE[torch.float32]
        else:
            apart = any(bool(delta.any()) for delta in (one, other) if delta is not None)
        if apart:
            raise UserError(f"{what} differs from the live model in {name}")


def _facts(module: nn.Module) -> dict[str, Tensor]:
    """All that a form says of a module: A, and B at its scale, of every LoRA layer, or else all of its tensors."""
    layers = lora_layers(module)
    if not layers:
        return dict(module.state_dict())
    scaled = {f"{name}.lora_B.weight": layer.scaling[next(iter(layer.active_adapters))] for name, layer in layers.items()}
    return {key: value * scaled.get(key, 1.0) for key, value in lora_weights(module).items()}


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
