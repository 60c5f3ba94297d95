"""Models that are merged: the effective weights of each, by the names of the one that they are merged into."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.distributed.meshes import whole
from mmalign.policies.adapters import ADAPTER, linear_layers, lora_layers
from mmalign.policies.language.scoring.reference_models import refuse_other_words
from mmalign.policies.transformers import TransformersPolicy
from mmalign.runs import weights
from mmalign.runs.weights import Stored
from mmalign.types import UserError


class Ingredient(NamedTuple):
    """One of the models. whole: values of parameters. pairs: name of a weight -> (alpha / rank, A ``[rank, in]``, B ``[out, rank]``), which
    are added to it. digest: SHA-256 of all of that, in hexadecimal.
    """

    whole: Mapping[str, Tensor]
    pairs: Mapping[str, tuple[float, Tensor, Tensor]]
    digest: str

    def weight(self, name: str, base: Tensor) -> Tensor:
        """Effective values of one parameter, in float64; those of the base where this holds nothing of it."""
        own = self.whole.get(name, base).double()
        if name not in self.pairs:
            return own
        scale, down, up = self.pairs[name]
        delta = scale * (up.double() @ down.double())
        return own + (delta if delta.shape == own.shape else delta.T)  # transformers' Conv1D holds its matrix as [in, out]

    @property
    def what(self) -> str:
        """In words."""
        ranks = sorted({len(down) for _, down, _ in self.pairs.values()})
        adapter = f"LoRA of rank {', '.join(map(str, ranks))} in {len(self.pairs)} layers" if ranks else ""
        return " and ".join(filter(None, (f"{len(self.whole)} tensors" if self.whole else "", adapter))) or "nothing"


def parameters_of(policy: Any) -> dict[str, nn.Parameter]:
    """All parameters of the model of a policy without LoRA, by name, in the model's order; heads beside it are last."""
    return {**dict(policy.sets.module.named_parameters()), **policy.sets.trained}


def stored(place: Path, key: str, policy: Any) -> Ingredient:
    """What a run, an adapter, or the folder of a model or pipeline holds.

    Errors: UserError, by the config's ``key``, where there are no weights, for those of another architecture, and for other words.
    """
    if isinstance(policy, TransformersPolicy) and any((place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        from transformers import AutoTokenizer

        words = AutoTokenizer.from_pretrained(str(place)).get_vocab()
        refuse_other_words(key, policy.chat.tokenizer.get_vocab(), words, takes="takes one with the same vocabulary")
    read = weights.read(place, key)
    run = (place / "config.yaml").is_file() or (place / "state.json").is_file()
    return matched(read, key, policy, partial=run)


def matched(read: Stored, key: str, policy: Any, *, partial: bool = False) -> Ingredient:
    """Weights by the names of the policy's parameters. partial: what is missing is the policy's own, as where only some were trained.

    Errors: UserError for tensors that the model does not have, of other shapes, or that are missing.
    """
    own, layers = parameters_of(policy), linear_layers(policy.sets.module)
    pairs, left = dict[str, tuple[float, Tensor, Tensor]](), dict(read.tensors)
    for layer, scale in read.scales.items():
        name = next((name for name in weights.plain({layer: 1}) if name in layers), None)
        halves = [left.pop(full, None) for side in "AB" for full in _named(layer, side, left)]
        if name is None or len(halves) != 2:
            raise UserError(f"{key}: got LoRA in {layer}, which is no linear layer of this model; takes weights of the same architecture")
        down, up = halves
        width, out = layers[name]
        if down is None or up is None or (down.shape[-1], up.shape[0]) != (width, out):
            raise UserError(f"{key}: got LoRA in {layer} of another shape, takes {width} in and {out} out")
        pairs[f"{name}.weight"] = scale, down, up
    whole = _whole(left, key, policy, own)
    if missing := [name for name in own if name not in whole and not pairs and not partial]:
        raise UserError(f"{key}: got weights with no {missing[0]} ({len(missing)} are missing); takes those of the same architecture")
    return Ingredient(whole, pairs, digest_of(whole, pairs))


def _named(layer: str, side: str, tensors: Mapping[str, Tensor]) -> list[str]:
    names = [f"{layer}.lora_{side}.weight", f"{layer}.lora_{side}.{ADAPTER}.weight"]
    return [name for name in names if name in tensors][:1]


def _whole(tensors: Mapping[str, Tensor], key: str, policy: Any, own: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Whole tensors by the names of parameters. Errors: UserError for those that this model does not have, ties among them."""
    module: nn.Module = policy.sets.module
    tied = {name: p for name, p in module.named_parameters(remove_duplicate=False) if name not in own}
    owners = {id(p): name for name, p in own.items()}
    buffers, found = dict(module.named_buffers()), dict[str, Tensor]()
    named = {full: [*weights.plain({full: 1}), full.replace(".base_layer.", ".")] for full in tensors}
    places = {full: next((name for name in names if name in own or name in tied or name in buffers), None) for full, names in named.items()}
    if strange := sorted(full for full, name in places.items() if name is None):
        raise UserError(
            f"{key}: got {len(strange)} tensors that this model does not have, such as {strange[0]}; takes weights of the same architecture"
        )
    for full, name in places.items():
        value = tensors[full]
        if name in buffers:
            if not torch.equal(buffers[name].cpu().to(value.dtype), value.cpu()):
                warnings.warn(f"{key}: {full} is a buffer, and stays that of the policy's model", stacklevel=2)
            continue
        owner = owners[id(tied[name])] if name in tied else str(name)
        if value.shape != own[owner].shape:
            raise UserError(
                f"{key}: {full} has the shape {list(value.shape)}, and {list(own[owner].shape)} here; takes the same architecture"
            )
        if owner in found and not torch.equal(found[owner], value):
            raise UserError(
                f"{key}: {full} is another matrix than {owner}, which are one in the policy's model; takes one that ties them too"
            )
        found[owner] = value
    return found


def live(policy: Any, key: str, into: Any) -> Ingredient:
    """The model of another policy as it is. Errors: UserError for a policy of another kind, other words, or another architecture."""
    if type(policy) is not type(into):
        raise UserError(f"{key}: got a {type(policy).__name__}, takes what the policy is, a {type(into).__name__}")
    if isinstance(into, TransformersPolicy):
        words = into.chat.tokenizer.get_vocab(), policy.chat.tokenizer.get_vocab()
        refuse_other_words(f"{key}.model", *words, takes="takes a model with the policy's vocabulary")
    module, tensors, scales = policy.sets.module, dict[str, Tensor](), dict[str, float]()
    for name, p in {**dict(module.named_parameters()), **policy.sets.trained}.items():
        tensors[name.replace(".base_layer.", ".")] = whole(p.detach()).cpu()
    for name, layer in lora_layers(module).items():
        scales[name] = float(layer.scaling[ADAPTER])
    return matched(Stored(tensors, scales), key, into)


def base_of(policy: Any) -> Ingredient:
    """The policy's own weights, as they are now."""
    own = {name: whole(p.detach()).to("cpu", copy=True) for name, p in parameters_of(policy).items()}
    return Ingredient(own, {}, digest_of(own, {}))


@torch.no_grad()
def blend(policy: Any, base: Ingredient, parts: Mapping[str, Ingredient], shares: Callable[[str], Mapping[str, float]]) -> None:
    """Makes the policy's parameters ``sum_k share_k theta_k``, summed in float64. shares: name of a parameter -> those of the parts."""
    for name, p in parameters_of(policy).items():
        below, mixed = base.whole[name], torch.zeros(p.shape, dtype=torch.float64)
        for part, share in shares(name).items():
            if share:
                mixed += share * parts[part].weight(name, below)
        p.copy_(mixed)


def digest_of(whole: Mapping[str, Tensor], pairs: Mapping[str, tuple[float, Tensor, Tensor]]) -> str:
    """SHA-256 of values by name, and of pairs with their scales, in hexadecimal."""
    hasher = hashlib.sha256()
    named = {**whole, **{f"{name}.{side}": half for name, (_, *halves) in pairs.items() for side, half in zip("AB", halves, strict=True)}}
    for name, value in sorted(named.items()):
        hasher.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, (scale, *_) in sorted(pairs.items()):
        hasher.update(f"{name} {scale!r}".encode())
    return hasher.hexdigest()
