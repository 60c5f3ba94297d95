"""The settings of policies as records: LoRA, which members are trained, how a pipeline denoises, and what saves memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import torch

from mmalign.arguments.ranges import Count, Finite, Positive, Seed, Share, within
from mmalign.arguments.signatures import Record
from mmalign.samplers.branches import Branches
from mmalign.samplers.windows import Window
from mmalign.types import Kernel, UserError

RANK = 32
Dtype = Literal["float32", "bfloat16", "float16"]


def type_of(dtype: str | None) -> torch.dtype | None:
    """A floating type by its name. Errors: UserError for another word."""
    if dtype is not None and dtype not in get_args(Dtype):
        raise UserError(f"policy.dtype: got {dtype!r}, takes {', '.join(get_args(Dtype))}")
    return None if dtype is None else getattr(torch, dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Lora(Record):
    """A low-rank adapter (Hu et al. 2021, arXiv 2106.09685): ``W + alpha / rank * B A``, of which B starts as zero.

    rank: columns of B. alpha: ``rank`` by default, so that the scale is 1. targets: names that linear layers end in, or ``all-linear``;
    by default the projections of attention; ``all-linear`` leaves the output embeddings out, as peft does. dropout: of what enters A.
    seed: of A. from_: a run's folder, or an adapter of peft's or diffusers', that it starts as; rank, alpha and targets are read from
    there. In YAML ``from``.

    Examples:
        >>> mm.Lora(rank=8)
        Lora(rank=8, alpha=None, targets=None, dropout=0.0, seed=0, from_=None)
        >>> mm.Lora(rank=0)
        Traceback (most recent call last):
        mmalign.types.UserError: rank: got 0, takes 1 or more
    """

    rank: Count = RANK
    alpha: Positive | None = None
    targets: str | list[str] | None = None
    dropout: Share = 0.0
    seed: Seed = 0
    from_: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_ is not None and (self.rank, self.alpha, self.targets) != (RANK, None, None):
            raise UserError("from: given beside rank, alpha or targets, which are read from there; takes one or the other")


How = Literal["freeze", "full"]


@dataclass(frozen=True)
class Train(Record):
    """What of each member of a model is trained: ``freeze``, ``full``, or LoRA as in ``{rank: 16}``. A member that is not named is frozen.

    vision: the encoder of images. projector: what leads from images to words. language: the decoder, with its output embeddings.
    """

    vision: How | Lora = "freeze"
    projector: How | Lora = "freeze"
    language: How | Lora = "freeze"

    def __post_init__(self) -> None:
        if self.vision == self.projector == self.language == "freeze":
            raise UserError("vision, projector, language: all are frozen, and nothing would be trained; takes full or LoRA for one of them")


@dataclass(frozen=True)
class Schedule(Record):
    """How a pipeline denoises, in rollout and replay alike.

    steps, guidance: its ``num_inference_steps`` and ``guidance_scale``; None leaves the pipeline's own guidance. kernel: how a step is
    made random; ``kernels.flow_sde(noise_level=0.7)`` by default. window: which steps are random and trained; ``windows.all_but_last()``
    by default. random: a window of steps that are random too, and not trained; none by default (``windows.everything()``: noise everywhere,
    with a window of fewer steps that are trained). branches: how rows of a group share the beginning of their trajectories (``mmalign list
    branches``); not at all by default. same_noise: rows of one group start from one noise (DanceGRPO). guidance_gradient: where the
    pipeline guides (output ``u + scale (c - u)``, c with the prompt and u without), ``both``: the gradient goes through c and u, ``(1 -
    scale) du + scale dc``; ``conditional``: through c alone, ``scale dc``, and u, which still counts, costs no backward pass: 4 passes of
    the denoiser and not 6 for each trained step. order: of the steps without noise: 1, Euler's on a flow and DDIM's; 2, DPM-Solver++(2M),
    nearer to the path at no further cost, so that fewer ``steps`` do; a step after one with noise is of order 1.

    Dialects:
    - flow_grpo: guidance_gradient="both": all of its scripts.
    - DGPO: guidance_gradient="conditional": its unconditional half is detached.
    """

    steps: Count = 10
    guidance: Finite | None = None
    kernel: Kernel | None = None
    window: Window | None = None
    random: Window | None = None
    branches: Branches | None = None
    same_noise: bool = False
    guidance_gradient: Literal["both", "conditional"] = "both"
    order: Literal[1, 2] = 1


@dataclass(frozen=True)
class Compile(Record):
    """Keywords of ``torch.compile``.

    backend: as torch knows it by name, or a function. mode: ``default``, ``reduce-overhead``, ``max-autotune``. fullgraph: a block that
    does not compile as one graph is an error. dynamic: sizes may change without compiling anew; None finds out. options: of the backend.
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    fullgraph: bool = False
    dynamic: bool | None = None
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Memory(Record):
    """What makes a pipeline fit, and run faster; none of it changes more than it says.

    rows_at_once: rows in one call of the pipeline while sampling. gradient_checkpointing: keep one activation for each block and compute
    the others again: a third more work in an update, and its memory no longer grows with what is inside a block. Changes no number.
    storage: ``float8`` keeps the frozen weights of the blocks' linear layers in 8 bits under LoRA: half the memory of bf16, a copy of one
    layer at a time, and weights rounded by up to 1/16 of their size; ``nf4`` in 4 bits (needs torchao). The policy is then that of the
    rounded model. offload: what waits on
    the CPU until it is needed: names of components, ``frozen`` for all that no step of sampling needs (encoders once prompts are encoded,
    the VAE until it decodes), ``references`` for full copies of the weights (``ref``, ``ema``; with LoRA they are small or none) and the
    denoisers of references that are other pipelines. Costs its transfer over the bus at each use. Changes no number. slice_vae: decode one
    row at a time: the decoder's memory no longer grows with rows_at_once. tile_vae: decode large images in overlapping tiles, blended at
    their seams, where the class can. Changes outputs a little. compile: ``torch.compile`` of the blocks that a denoiser repeats, or of all
    of it where it has none. Costs minutes at the first steps. Compiled with gradient and without, arithmetic may differ in its last bits,
    and preflight measures by how much.
    """

    rows_at_once: Count = 64
    gradient_checkpointing: bool = False
    storage: Literal["float8", "nf4"] | None = None
    offload: str | list[str] = field(default_factory=list)
    slice_vae: bool = False
    tile_vae: bool = False
    compile: bool | Compile = False


@dataclass(frozen=True)
class TextMemory(Record):
    """What makes a language model fit, and run faster.

    rows_at_once: rows in one batch while sampling. logits_at_once: numbers in the largest piece of logits. gradient_checkpointing:
    recompute activations in the backward pass; prompts are then not shared. shared_prefixes: compute a prompt once for all of its rows,
    where the model's cache allows it. offload: ``references``: full copies of the weights, and references that are other models, wait on
    the CPU until they are used. Costs their transfer over the bus at each use. Changes no number. storage: ``nf4`` keeps the frozen weights
    of the blocks' linear layers in 4 bits under LoRA (needs torchao): a quarter of the memory of bf16. The policy is that of the rounded
    model.
    """

    rows_at_once: Count = 64
    logits_at_once: Annotated[int, within(1)] = 2**23
    gradient_checkpointing: bool = False
    shared_prefixes: bool = True
    offload: Literal["references"] | None = None
    storage: Literal["nf4"] | None = None


@dataclass(frozen=True)
class Turns(Record):
    """Conversations in place of single answers: the policy answers, the environment replies, the policy goes on.

    environment: a callable ``(conversations) -> replies``: of each a text (the user's), a turn or several (``{"role": "tool", "content":
    ...}``; ``error: true`` in one counts as ``environment_errors``), or None, which ends it. Conversations are lists of turns, the prompt's
    and what followed; a vision-language model sees the images in replies. One that takes ``seeds`` gets a number for each, that does not
    depend on other rows. limit: turns of the policy's, at most; the environment is not asked behind the last. max_turn: tokens of one of
    them; None: as many as ``max_completion``, which is of a whole conversation and of what the environment says in it, has left. seconds:
    that the environment may take to reply to all rows.
    parting: the rows of a prompt share their conversation up to a turn, and part there; what stands before it is outside of the mask. The
    turn is drawn from those of the prompt's first row, each as likely (REFUEL, https://arxiv.org/abs/2410.04612, algorithm 1).
    """

    environment: Callable[..., Any]
    limit: Count = 4
    max_turn: Count | None = None
    seconds: Positive = 600.0
    parting: bool = False


@dataclass(frozen=True)
class EngineSettings(Record):
    """A server that samples (vLLM's, see ``language.engine``); what is trained is handed over before every rollout.

    Tried with a stand-in of the tests that answers as vLLM does. vLLM itself was not run; SGLang, whose words differ, is not spoken to.

    url: up to and with ``/v1``. model: its name there. folder: where adapters are handed over, on a disk that both see; for whole weights
    the one that the server was started on, whose weights are replaced. update: ``adapter`` or ``weights``; by default an adapter where
    all that is trained is LoRA in the language model, and else whole weights. at_once: requests under way, one for each prompt. timeout:
    seconds for each.
    """

    url: str
    model: str
    folder: str | None = None
    update: Literal["adapter", "weights"] | None = None
    at_once: Count = 64
    timeout: Positive = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"url: got {self.url!r}, takes an address that starts with http:// or https://")
