"""Members of a model by name (``vision``, ``projector``, ``language``): what of them is trained, in one line.

They are found through the model's own structure: its encoder of images, its decoder and output embeddings, and what is left, or sits
inside the encoder under a projector's name, leads from one to the other.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from mmalign.distributed.shards import awaited
from mmalign.policies.adapters import Layer, inject, planned
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.settings import Lora, TextMemory, Train
from mmalign.types import UserError

PROJECTORS = ("merger", "deepstack_merger_list", "multi_modal_projector", "connector", "aligner", "mm_projector", "perceiver_resampler")
"""What transformers calls the layers that lead from pictures to words, where a model keeps them inside of its encoder."""


CODEBOOK = "vqmodel"
"""What transformers calls the part that turns images into codes and back. No gradient reaches it, and nothing trains it."""


def members_of(model: Any) -> dict[str, list[str]]:
    """Names of parameters by member; a language model has ``language`` alone. Codebooks are no member."""
    sees = getattr(model.config, "vision_config", None) is not None
    encoder, decoder = (model.get_encoder("image"), model.get_decoder()) if sees else (None, model)
    output = None if model.get_output_embeddings() is None else model.get_output_embeddings()
    of = {
        name: {id(p) for p in part.parameters()} if part is not None else set[int]()
        for name, part in (("vision", encoder if encoder is not model else None), ("language", decoder), ("output", output))
    }
    members: dict[str, list[str]] = {"vision": [], "projector": [], "language": []}
    for name, p in model.named_parameters():
        if CODEBOOK in name.split("."):
            continue
        if sees and any(word in PROJECTORS for word in name.split(".")):
            place = "projector"
        elif id(p) in of["language"] or id(p) in of["output"]:
            place = "language"
        else:
            place = "vision" if id(p) in of["vision"] else "projector"
        members[place].append(name)
    return {place: names for place, names in members.items() if names}


def ready(model: nn.Module, train: Train) -> bool:
    """Freezes and opens members as ``train`` says, and puts LoRA in. Whether all that is trained is LoRA.

    Errors: UserError for members that the model does not have, and LoRA targets that match no layer.
    """
    members = members_of(model)
    trained = {member: setting for member, setting in vars(train).items() if setting != "freeze"}
    if odd := sorted(set(trained) - set(members)):
        raise UserError(f"policy.train: got {', '.join(odd)}; {type(model).__name__} has {', '.join(members)}")
    lora: dict[str, Layer] = {}
    opened = set[str]()
    for member, setting in trained.items():
        if isinstance(setting, Lora):
            lora |= planned(model, setting, f"policy.train.{member}", among=set(members[member]))
        else:
            opened |= set(members[member])
    if lora:
        inject(model, lora)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name or name.replace(".base_layer.", ".") in opened)
    return not opened


def making(train: Train) -> Any:
    """``ready`` as ``ParameterSets`` takes it."""
    return partial(ready, train=train)


def all_but_the_codebook(model: nn.Module) -> bool:
    """Opens all that can be trained, of a model that has a codebook."""
    for name, p in model.named_parameters():
        p.requires_grad_(CODEBOOK not in name.split("."))
    return False


def sets_of(
    model: nn.Module, memory: TextMemory, *, lora: Lora | None, train: Train | None, start: str | None, device: torch.device
) -> ParameterSets:
    """A language model's parameters, those made ready that are to be trained; all of it is on its device then."""
    if not awaited():
        model.to(device)
    home = None if memory.offload is None else torch.device("cpu")
    cut_to = device if memory.storage is None else None  # weights are rounded whole
    coded = any(CODEBOOK in name.split(".") for name, _ in model.named_modules())
    members = None if train is None else making(train)
    if coded and lora is None and train is None:
        members = all_but_the_codebook
    sets = ParameterSets(model, lora=lora, home=home, train=members, start=start, cut_to=cut_to)
    model.to(device)
    return sets
