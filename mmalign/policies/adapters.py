"""LoRA adapters: put in, on, off, of another rank, mixed; and as files hold them, for peft and diffusers, merged into the weights."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmalign.distributed.meshes import whole
from mmalign.policies.settings import Lora
from mmalign.runs import weights
from mmalign.types import UserError

ATTENTION = (
    "to_q", "to_k", "to_v", "to_out", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "q_proj", "k_proj",
    "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "attention.dense", "self_attention.dense", "c_attn", "attn.c_proj",
)  # fmt: skip
ADAPTER = "default"  # what peft calls the adapter that add_lora injects


@runtime_checkable
class Speaking(Protocol):
    """A language model, which knows its output embeddings."""

    def get_output_embeddings(self) -> nn.Module | None: ...


class Layer(NamedTuple):
    """What one layer's LoRA is made as. pair: A ``[rank, in]`` and B ``[out, rank]``; None: A is drawn, and B is 0."""

    rank: int
    alpha: float
    lora: Lora
    pair: tuple[Tensor, Tensor] | None = None


def add_lora(module: nn.Module, lora: Lora) -> None:
    """Injects a LoRA adapter (peft) in place; only its weights are trained, in float32 whatever the module's type.

    The adapter starts as zero (B = 0), so that nothing changes before the first update, or as what ``lora.from_`` holds. Errors:
    UserError where no layer matches, and for what ``planned`` refuses.
    """
    inject(module, planned(module, lora, "policy.lora"))
    for name, p in module.named_parameters():
        p.requires_grad_("lora_" in name)


def planned(module: nn.Module, lora: Lora, key: str, *, among: set[str] | None = None) -> dict[str, Layer]:
    """LoRA layers by name. among: names of weights, where others are not to be touched.

    Errors: UserError, by the config's ``key``, for targets that match nothing, and for a stored adapter with tensors that have no place.
    """
    if lora.from_ is None:
        alpha = lora.rank if lora.alpha is None else lora.alpha
        return dict.fromkeys(lora_targets(module, lora.targets, f"{key}.targets", among=among), Layer(lora.rank, alpha, lora))
    stored = weights.read(weights.existing(lora.from_, f"{key}.from"), f"{key}.from")
    linear = linear_layers(module, among=among)
    left, layers = dict(stored.tensors), dict[str, Layer]()
    for place, scale in stored.scales.items():
        name = next((name for name in weights.plain({place: 1}) if name in linear), None)
        down, up = (_key(left, f"{place}.{side}") for side in ("lora_A", "lora_B"))
        if name is None or not up:
            continue
        pair = left[down], left[up]
        rank, (width, out) = len(pair[0]), linear[name]
        if pair[0].shape[1:] == (width,) and pair[1].shape == (out, rank):
            layers[name] = Layer(rank, scale * rank, lora, pair)
            del left[down], left[up]
    if left:
        raise UserError(f"{key}.from: {lora.from_} holds {len(left)} tensors with no place in {type(module).__name__}, such as {min(left)}")
    if not layers:
        raise UserError(f"{key}.from: {lora.from_} holds no LoRA; takes a run that trained one, or an adapter of peft's or diffusers'")
    return layers


def _key(tensors: Mapping[str, Tensor], half: str) -> str:
    """The name of A or B in a file, with the adapter's name in it or without; '' where it is not there."""
    return next((key for key in (f"{half}.weight", f"{half}.{ADAPTER}.weight") if key in tensors), "")


def linear_layers(module: nn.Module, *, among: set[str] | None = None) -> dict[str, tuple[int, int]]:
    """Layers that multiply by a matrix: their widths, in and out, by name. among: as of ``planned``.

    transformers' ``Conv1D``, of which GPT-2 is made, is one too. It holds its matrix as ``[in, out]``; A and B are as everywhere.
    """
    from transformers.pytorch_utils import Conv1D

    widths = dict[str, tuple[int, int]]()
    for name, layer in module.named_modules():
        if among is not None and f"{name}.weight" not in among:
            continue
        if isinstance(layer, nn.Linear):
            widths[name] = layer.in_features, layer.out_features
        elif isinstance(layer, Conv1D):
            widths[name] = layer.nx, layer.nf
    return widths


def _transposed(layers: Mapping[str, nn.Module]) -> bool:
    """Whether some layer holds its matrix as ``[in, out]``, which peft is told by ``fan_in_fan_out``."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(layer, Conv1D) for layer in layers.values())


def lora_targets(module: nn.Module, targets: str | list[str] | None, key: str, *, among: set[str] | None = None) -> list[str]:
    """Linear layers that LoRA goes into, by name. among: names of weights, where others are not to be touched.

    targets: as in ``Lora``. Errors: UserError where none matches, by the config's ``key``.
    """
    last = module.get_output_embeddings() if isinstance(module, Speaking) and targets == "all-linear" else None
    linear = [name for name in linear_layers(module, among=among) if module.get_submodule(name) is not last]
    if targets == "all-linear":
        matching = linear
    else:
        named = ATTENTION if targets is None else targets
        endings = [named] if isinstance(named, str) else named
        matching = [name for name in linear if any(name == w or name.endswith(f".{w}") for w in endings)]
    if not matching:
        ends = sorted({[part for part in name.split(".") if not part.isdigit()][-1] for name in linear})
        got = "the projections of attention" if targets is None else targets
        raise UserError(f"{key}: got {got}, which matches no linear layer of {type(module).__name__}; it has {', '.join(ends[:12])}")
    return matching


def inject(module: nn.Module, layers: Mapping[str, Layer]) -> None:
    """One adapter with a rank and a scale for each layer, in float32."""
    from peft import inject_adapter_in_model

    first = next(iter(layers.values()))
    ranks, alphas = {name: layer.rank for name, layer in layers.items()}, {name: layer.alpha for name, layer in layers.items()}
    turned = _transposed({name: module.get_submodule(name) for name in layers})
    config = _config(ranks, alphas, lora_dropout=first.lora.dropout, init_lora_weights=True, fan_in_fan_out=turned)
    with torch.random.fork_rng():
        torch.manual_seed(first.lora.seed)
        inject_adapter_in_model(config, module)
    injected = lora_layers(module)
    for name, layer in layers.items():
        for number, half in enumerate((injected[name].lora_A[ADAPTER], injected[name].lora_B[ADAPTER])):
            half.float()
            if layer.pair is not None:
                half.load_state_dict({"weight": layer.pair[number]})


Wanted = Literal["merged", "comfyui"]  # forms of an export that are asked for


class Form(NamedTuple):
    """One way to load an export.

    name: ``diffusers``, ``peft``, ``comfyui`` or ``full``. code: Python lines that load it from ``folder`` into ``pipe``. modules: the
    denoisers that it holds, by name. load: (folder, fresh pipeline or None) -> pipeline.
    """

    name: str
    code: tuple[str, ...]
    modules: dict[str, nn.Module]
    load: Callable[[Path, Any], Any]


class Pair(NamedTuple):
    """A layer with a LoRA, the names of its A and B among the module's parameters, and the modules that hold these."""

    layer: Any
    down: str
    up: str
    modules: tuple[nn.Module, nn.Module]


def refuse_taken(folder: Path) -> None:
    """Errors: UserError where something is at the place of an export."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists: takes a folder that is not there yet (--out)")


def adapter(module: nn.Module, *, folded: bool = False) -> tuple[dict[str, Tensor], Any]:
    """The LoRA weights of a module by peft's names (``blocks.0.to_q.lora_A.weight``), and its ``peft.LoraConfig``.

    folded: B is multiplied by alpha / rank and alpha is the rank, for loaders that know the tensors alone.
    """
    layers, weights = lora_layers(module), lora_weights(module)
    ranks = {name: layer.r[ADAPTER] for name, layer in layers.items()}
    if folded:
        weights |= {key: weights[key] * layer.scaling[ADAPTER] for name, layer in layers.items() for key in (f"{name}.lora_B.weight",)}
    alphas = ranks if folded else {name: layer.lora_alpha[ADAPTER] for name, layer in layers.items()}
    return weights, _config(ranks, alphas, fan_in_fan_out=_transposed({name: layer.get_base_layer() for name, layer in layers.items()}))


def _config(ranks: Mapping[str, int], alphas: Mapping[str, float], **more: Any) -> Any:
    """A ``peft.LoraConfig`` with a rank and an alpha for each layer, by name."""
    from peft import LoraConfig

    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=sorted(ranks),
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
        alpha_pattern={name: own for name, own in alphas.items() if own != alpha}, **more,
    )  # fmt: skip


def merged(module: nn.Module) -> nn.Module:
    """A copy of a module with its LoRA added to its weights (``W + alpha / rank * B A``, Hu et al. 2021, equation 3) and taken out."""
    whole = copy.deepcopy(module)
    for name, layer in lora_layers(whole).items():
        layer.merge()
        whole.set_submodule(name, layer.get_base_layer())
    whole.__dict__.pop("peft_config", None)
    return whole


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """The layers of a module that have a LoRA of peft's, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def pairs_of(module: nn.Module) -> list[Pair]:
    """All pairs of a module."""
    return [
        Pair(layer, f"{name}.lora_A.{ADAPTER}.weight", f"{name}.lora_B.{ADAPTER}.weight", (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]))
        for name, layer in lora_layers(module).items()
    ]


def lora_weights(module: nn.Module) -> dict[str, Tensor]:
    """By names without an adapter's name in them."""
    pattern = re.compile(r"\.(lora_[AB])\.[^.]+\.weight$")
    return {pattern.sub(r".\1.weight", name): whole(p.detach()) for name, p in module.named_parameters() if pattern.search(name)}


@contextmanager
def switched(module: nn.Module, *, on: bool) -> Iterator[None]:
    """While the block lasts, a module's adapters are on or off; they come back as they were. No parameter is touched.

    peft's own switch also freezes what it switches off, and by that the wrong tensors where ``fully_shard`` has put others in their place.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = [(layer, layer.disable_adapters) for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    try:
        for layer, _ in before:
            layer._disable_adapters = not on
        yield
    finally:
        for layer, off in before:
            layer._disable_adapters = off


@contextmanager
def seated(pairs: Mapping[Pair, tuple[Tensor, Tensor] | None]) -> Iterator[None]:
    """While the block lasts, layers use other pairs, A ``[R, in]`` and B ``[out, R]`` of any rank; None: their own.

    What is trained steps aside as modules and is not written to. What stood there before comes back.
    """
    before = [(pair.layer, pair.layer.lora_A[ADAPTER], pair.layer.lora_B[ADAPTER]) for pair in pairs]
    try:
        for pair, other in pairs.items():
            down, up = pair.modules if other is None else (_linear(other[0]), _linear(other[1]))
            pair.layer.lora_A[ADAPTER], pair.layer.lora_B[ADAPTER] = down, up
        yield
    finally:
        for layer, down, up in before:
            layer.lora_A[ADAPTER], layer.lora_B[ADAPTER] = down, up


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def stacked(parts: Sequence[tuple[float, Tensor, Tensor]], *, most: int) -> tuple[Tensor, Tensor]:
    """The pair A ``[R, in]``, B ``[out, R]`` with ``B A = sum_k share_k B_k A_k``, of (share, A_k, B_k): their ranks one after the other.

    most: above this rank the sum is factored anew, and singular values are dropped that together are below 1e-7 of it.
    """
    down = torch.cat([a for share, a, _ in parts if share])
    up = torch.cat([share * b for share, _, b in parts if share], dim=1)
    if len(down) <= most:
        return down, up
    left, values, right = factors(down, up)
    rest = values.square().flip(0).cumsum(0).flip(0).sqrt()  # what is dropped from there on
    rank = int((rest > 1e-7 * rest[0]).sum())
    return right[:, :rank].T.to(down).contiguous(), (left[:, :rank] * values[:rank]).to(up)


def fitted(down: Tensor, up: Tensor, near: Tensor) -> tuple[Tensor, Tensor, float]:
    """The pair of the rank of ``near [r, in]`` whose product is nearest to ``up down`` (Eckart & Young 1936), and its distance.

    Of the pairs with that product, one whose A is as near to ``near`` as the rows of the product allow, so that what an optimiser has
    gathered about A and B still means something. The distance is in Frobenius norms, over that of ``up down``.
    """
    left, values, right = factors(down, up)
    rank = min(len(near), int((values > 1e-7 * values[:1]).sum()))
    lost = float(values[rank:].norm() / values.norm()) if rank else 0.0
    near = near.double()
    basis = torch.linalg.qr(torch.cat([right[:, :rank], near.T], dim=1)).Q[:, : len(near)]  # rows of the product, then those of near
    turn, sizes, back = torch.linalg.svd(near @ basis, full_matrices=False)
    sizes = sizes.clamp(min=1e-3 * float(sizes[0]))  # rows that near has little of would need huge columns of B
    product = (left[:, :rank] * values[:rank]) @ (right[:, :rank].T @ basis)
    return (turn * sizes) @ back @ basis.T, product @ back.T / sizes @ turn.T, lost


def factors(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``up down`` as ``(U, s, V)`` with ``U diag(s) V^T``, in float64, without the product itself."""
    (one, left), (other, right) = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().T)
    turn, values, back = torch.linalg.svd(left @ right.T, full_matrices=False)
    return one @ turn, values, other @ back.T


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config of peft's as JSON can hold it: sets become sorted lists."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def write_adapter(module: Any, place: Path, *, folded: bool = False, base: str | None = None, task: str | None = None) -> None:
    """``adapter_config.json`` and ``adapter_model.safetensors`` as peft reads them.

    folded: as of ``adapter``. base, task: what peft's config says of the model beneath (``base_model_name_or_path``, ``task_type``).
    """
    from safetensors.torch import save_file

    weights, config = adapter(module, folded=folded)
    config.inference_mode, config.base_model_name_or_path, config.task_type = True, base, task
    config.save_pretrained(str(place))
    stored = {f"base_model.model.{key}": value.cpu().contiguous() for key, value in weights.items()}
    save_file(stored, str(place / "adapter_model.safetensors"), metadata={"format": "pt"})


# What is frozen under LoRA, in 4 bits

BLOCK, SCALES = 64, 256  # numbers with one scale, and scales with one


def fits_in_four_bits(layer: nn.Module) -> bool:
    """Whether this is a frozen linear layer whose weights come in whole blocks."""
    return isinstance(layer, nn.Linear) and not layer.weight.requires_grad and layer.weight.numel() % BLOCK == 0


def in_four_bits(layer: nn.Linear) -> int:
    """Bytes of a layer's weight in 4 bits, with its scales."""
    scales = layer.weight.numel() // BLOCK
    return layer.weight.numel() // 2 + scales + 4 * -(-scales // SCALES)


@torch.no_grad()
def store_in_four_bits(layers: Iterable[nn.Linear]) -> None:
    """Rounds weights in place, to NF4 (Dettmers et al. 2023, arXiv 2305.14314). Errors: UserError without torchao."""
    try:
        from torchao.quantization import to_nf4
    except ImportError as error:
        missing = "needs the package torchao, which is not installed: pip install 'mmalign[eight_bit]'"
        raise UserError(f"policy.memory.storage: nf4 {missing}") from error
    for layer in layers:
        weight = layer.weight.detach()
        stored = to_nf4(weight, BLOCK, math.gcd(weight.numel() // BLOCK, SCALES))
        layer.weight = nn.Parameter(stored, requires_grad=False)
