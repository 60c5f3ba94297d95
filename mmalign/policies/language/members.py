"""Members of a model by name (``vision``, ``projector``, ``language``): what of them is trained, in one line.

They are found through the model's own structure: its encoder of images, its decoder and output embeddings, and what is left, or sits
inside the encoder under a projector's name, leads from one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from mmalign.policies.parameters import ATTENTION, RANK
from mmalign.types import UserError

PROJECTORS = ("merger", "deepstack_merger_list", "multi_modal_projector", "connector", "aligner", "mm_projector", "perceiver_resampler")
"""What transformers calls the layers that lead from pictures to words, where a model keeps them inside of its encoder."""
HOW = "freeze, full, or LoRA as in {rank: 16, alpha: 32, targets: [q_proj]}"
LORA = ("rank", "alpha", "targets", "dropout")


def members_of(model: Any) -> dict[str, list[str]]:
    """Names of parameters by member; a language model has ``language`` alone."""
    sees = getattr(model.config, "vision_config", None) is not None
    encoder, decoder = (model.get_encoder("image"), model.get_decoder()) if sees else (None, model)
    output = None if model.get_output_embeddings() is None else model.get_output_embeddings()
    of = {name: {id(p) for p in part.parameters()} if part is not None else set[int]() for name, part in
          (("vision", encoder if encoder is not model else None), ("language", decoder), ("output", output))}  # fmt: skip
    found: dict[str, list[str]] = {"vision": [], "projector": [], "language": []}
    for name, p in model.named_parameters():
        leads = sees and any(word in PROJECTORS for word in name.split("."))
        spoken = id(p) in of["language"] or id(p) in of["output"]
        place = "projector" if leads else "language" if spoken else "vision" if id(p) in of["vision"] else "projector"
        found[place].append(name)
    return {place: names for place, names in found.items() if names}


def ready(model: nn.Module, train: Mapping[str, Any]) -> bool:
    """Freezes and opens members as ``train`` says, and puts LoRA in; those that it does not name are frozen. Whether all that is trained
    is LoRA.

    train: member -> ``freeze``, ``full``, or keywords of LoRA. Errors: UserError for names that the model does not have, words that are
    not known, layers that there are not, and where nothing would be trained.
    """
    have = members_of(model)
    if not isinstance(train, Mapping) or set(train) - set(have):
        odd = ", ".join(sorted(set(train) - set(have))) if isinstance(train, Mapping) else repr(train)
        raise UserError(f"policy.train: got {odd}; {type(model).__name__} has {', '.join(have)}, each {HOW}")
    lora: dict[str, Mapping[str, Any]] = {}
    opened = set[str]()
    for member, how in train.items():
        if isinstance(how, Mapping):
            if set(how) - set(LORA) or not isinstance(how.get("rank", RANK), int) or how.get("rank", RANK) < 1:
                raise UserError(f"policy.train.{member}: got {dict(how)}, takes {', '.join(LORA)}")
            lora |= dict.fromkeys(_layers(model, member, set(have[member]), how.get("targets")), how)
        elif how == "full":
            opened |= set(have[member])
        elif how != "freeze":
            raise UserError(f"policy.train.{member}: got {how!r}, takes {HOW}")
    if not lora and not opened:
        raise UserError(f"policy.train: trains nothing; takes full or LoRA for one of {', '.join(have)}")
    named = dict(model.named_parameters())
    for name, p in named.items():
        p.requires_grad_(name in opened)
    if lora:
        _inject(model, lora)
        for name, p in model.named_parameters():
            p.requires_grad_("lora_" in name or name.replace(".base_layer.", ".") in opened)
            if "lora_" in name:
                p.data = p.data.float()
    return not opened


def making(train: Mapping[str, Any]) -> Any:
    """``ready`` as ``ParameterSets`` takes it."""
    return partial(ready, train=train)


def _layers(model: nn.Module, member: str, names: set[str], targets: Any) -> list[str]:
    """Linear layers of a member that LoRA goes into."""
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and f"{name}.weight" in names]
    wanted = [targets] if isinstance(targets, str) and targets != "all-linear" else ATTENTION if targets is None else targets
    found = linear if wanted == "all-linear" else [name for name in linear if any(name == w or name.endswith(f".{w}") for w in wanted)]
    if not found:
        ends = sorted({[part for part in name.split(".") if not part.isdigit()][-1] for name in linear})
        raise UserError(
            f"policy.train.{member}.targets: got {targets}, which matches none of its linear layers; it has {', '.join(ends[:12])}"
        )
    return found


def _inject(model: nn.Module, lora: Mapping[str, Mapping[str, Any]]) -> None:
    """One adapter with a rank and a scale for each layer; it starts as zero."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    ranks = {name: int(how.get("rank", RANK)) for name, how in lora.items()}
    alphas = {name: ranks[name] if how.get("alpha") is None else how["alpha"] for name, how in lora.items()}
    first = next(iter(lora))
    config = LoraConfig(
        r=ranks[first], lora_alpha=alphas[first], target_modules=list(lora), rank_pattern=ranks, alpha_pattern=alphas,
        lora_dropout=float(lora[first].get("dropout", 0.0)), init_lora_weights=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_adapter_in_model(config, model)
