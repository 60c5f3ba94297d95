"""Optimisers by name: torch's own, and 8-bit ones of torchao; each with a schedule, clipping, and a moving average of the parameters.

``optimizer: {use: adamw, rate: 1.0e-4, decay: cosine}`` in a config is ``mm.adamw(rate=1e-4, decay="cosine")``. What all of them share:

- rate: the highest learning rate. warmup: steps over which it rises in a line, ``(step + 1) / (warmup + 1)``.
- decay: what it is times otherwise: ``constant`` 1; ``linear`` ``1 - step / steps`` of the run's steps; ``cosine``
  ``(1 + cos(pi step / steps)) / 2`` (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5, one cycle down to 0). ``{shape: linear, steps:
  1000}`` is one of a length of its own, so that a run of fewer steps can be resumed to more: with the run's steps it cannot.
- max_norm: gradients are scaled down to this norm of all parameters together.
- ema: the decay of an exponential moving average that is evaluated and exported, or ``{decay, every}`` for one that is updated after
  every so many updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch

from mmalign.arguments.ranges import Natural, NotNegative, Positive, Share, Steps, within
from mmalign.arguments.signatures import Record
from mmalign.distributed.meshes import is_cut
from mmalign.training.optimizer_state import OfWholeMatrices
from mmalign.training.settings import above, at_least
from mmalign.types import UserError

__all__ = ["adafactor", "adamw", "adamw_8bit", "muon", "sgd"]

Shape = Literal["constant", "linear", "cosine"]
Norm = Annotated[float, within(0, above=True)]  # and .inf, which clips nothing
HALF_EPS = 1e-4
"""In float16 the square of a gradient below 2.4e-4 is 0, and AdamW divides by ``eps`` alone: from here on its step stays near the rate."""
Decaying = Annotated[float, within(-math.inf, 0)]


@dataclass(frozen=True)
class Ema(Record):
    """An exponential moving average of the parameters, which is what is evaluated and exported: ``set <- d set + (1 - d) current``.

    decay: the largest d; after n updates it is ``min(decay, (1 + n) / (10 + n))``, so that a short run's average is no average of its
    beginning. every: updates between two of these.
    """

    decay: Share
    every: Steps = 1


@dataclass(frozen=True)
class Decay(Record):
    """How the learning rate falls, and over how many steps. A run may be shorter, and be resumed up to that number.

    shape: ``linear`` or ``cosine``. steps: after which the rate is 0.
    """

    shape: Literal["linear", "cosine"]
    steps: Steps


@dataclass(frozen=True)
class Optimizer:
    """make: trained parameters -> torch's optimiser, at the rate ``rate``; NaN where that sets its rates itself. The rest is as the file's
    docstring says."""

    make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] = field(repr=False)
    rate: float
    warmup: int
    decay: Shape | Decay
    max_norm: float
    ema: Ema | None

    @property
    def follows_steps(self) -> bool:
        """Whether its rate is another one in a run of more steps."""
        return self.decay in ("linear", "cosine")

    def refuse_longer(self, steps: int) -> None:
        """Errors: UserError for a run of more steps than its decay has, of which the last would be at a rate of 0."""
        if isinstance(self.decay, Decay) and steps > self.decay.steps:
            raise UserError(
                f"optimizer.decay.steps: got {self.decay.steps} and steps: {steps}, of which the last have a rate of 0; takes {steps}"
            )

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, from 0, of so many."""
        shape, over = (self.decay.shape, self.decay.steps) if isinstance(self.decay, Decay) else (self.decay, steps)
        done = min(step / over, 1.0)
        share = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[shape]
        return self.rate * min(1.0, (step + 1) / (self.warmup + 1)) * share


def adamw(
    *, rate: Positive = 1e-4, betas: tuple[Share, Share] = (0.9, 0.999), eps: NotNegative = 1e-8, weight_decay: NotNegative = 0.0,
    warmup: Natural = 0, decay: Shape | Decay = "constant", max_norm: Norm = 1.0, ema: Share | Ema | None = None,
) -> Optimizer:  # fmt: skip
    """AdamW: steps of the size of the rate, whatever the gradient's; weights decay apart from it.

    betas: decays of the means of gradients and of their squares. eps: added to the root of the second. weight_decay: times the rate,
    each step.

    Paper: Decoupled Weight Decay Regularization, arXiv 1711.05101.

    Examples:
        >>> optimizer = mm.adamw(rate=1.0, warmup=3, decay="linear")
        >>> [optimizer.rate_at(step, steps=8) for step in (0, 1, 4, 6)]  # 1/4 of 1, 2/4 of 7/8, then 4/8 and 2/8
        [0.25, 0.4375, 0.5, 0.25]
    """
    at_least(0, weight_decay=weight_decay, eps=eps)
    _refuse_betas(betas)

    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    return _optimizer(make, rate, warmup, decay, max_norm, ema, half=eps >= HALF_EPS, shards="rows")


def adamw_8bit(
    *, rate: Positive = 1e-4, betas: tuple[Share, Share] = (0.9, 0.999), eps: NotNegative = 1e-8, weight_decay: NotNegative = 0.0,
    warmup: Natural = 0, decay: Shape | Decay = "constant", max_norm: Norm = 1.0, ema: Share | Ema | None = None,
) -> Optimizer:  # fmt: skip
    """AdamW whose two means are kept in 8 bits, in blocks with a scale each: a quarter of its memory. Needs torchao.

    betas, eps, weight_decay: as of ``adamw``.

    Paper: 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861.

    Deviations: torchao's: a parameter of fewer than 4096 numbers, or of no whole blocks of 256, keeps its means as they are. The first
    update compiles one kernel for every shape of parameter, which takes a while. Errors: UserError without torchao.
    """
    at_least(0, weight_decay=weight_decay, eps=eps)
    _refuse_betas(betas)

    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        try:
            from torchao.optim import AdamW8bit
        except ImportError as error:
            raise UserError("optimizer: adamw_8bit needs the package torchao, which is not installed (mmalign[eight_bit])") from error
        made: torch.optim.Optimizer = AdamW8bit(parameters, lr=rate, betas=betas, eps=eps, weight_decay=weight_decay)
        return made

    return _optimizer(make, rate, warmup, decay, max_norm, ema, half=eps >= HALF_EPS, shards="matrices")


def adafactor(  # the keywords that the library has
    *, rate: Positive | None = None, eps: tuple[NotNegative, NotNegative] = (1e-30, 1e-3), clip_threshold: Positive = 1.0,
    decay_rate: Decaying = -0.8, beta1: Share | None = None, weight_decay: NotNegative = 0.0, scale_parameter: bool = True,
    relative_step: bool = False, warmup_init: bool = False, warmup: Natural = 0, decay: Shape | Decay = "constant", max_norm: Norm = 1.0,
    ema: Share | Ema | None = None,
) -> Optimizer:  # fmt: skip
    """Adafactor: second moments as a row's and a column's, so that a matrix of n x m costs n + m numbers.

    rate: 1e-4 by default; with relative_step none may be given. eps: added to squares of gradients; and the least that scale_parameter
    takes for a parameter's size. clip_threshold: the root mean square that an update of a parameter is scaled down to. decay_rate: the
    mean of squares after t steps forgets at ``1 - t^decay_rate``. beta1: decay of a mean of updates; None keeps none, and its memory.
    weight_decay: times the rate, each step. scale_parameter: the rate times the root mean square of the parameter. relative_step: the rate
    is ``min(1e-2, 1 / sqrt(t))`` instead. warmup_init: of that, ``min(1e-6 t, 1 / sqrt(t))``.

    Diffusion-DPO's, and what transformers advises for a rate of one's own, is ``adafactor(rate=..., scale_parameter=False)``.

    Paper: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv 1804.04235.

    Deviations: those of transformers' Adafactor, which it is: squares have ``eps`` added before they are averaged.
    Errors: UserError for a rate, warmup or decay beside relative_step, and for warmup_init without it.
    """
    at_least(0, weight_decay=weight_decay)
    if warmup_init and not relative_step:
        raise UserError("warmup_init: got true without relative_step, whose rate it is about; takes both or none")
    own = {"rate": rate is not None, "warmup": warmup != 0, "decay": decay != "constant"}
    if relative_step and any(own.values()):
        name = next(name for name, given in own.items() if given)
        raise UserError(f"{name}: given beside relative_step, which sets the rate of every step itself; takes one of them")

    usual = 1e-4 if rate is None else rate
    chosen = None if relative_step else usual

    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor

        made: torch.optim.Optimizer = Adafactor(
            parameters, lr=chosen, eps=tuple(eps), clip_threshold=clip_threshold,
            decay_rate=decay_rate, beta1=beta1, weight_decay=weight_decay, scale_parameter=scale_parameter, relative_step=relative_step,
            warmup_init=warmup_init,
        )  # fmt: skip
        return made

    return _optimizer(make, chosen, warmup, decay, max_norm, ema, shards="matrices")


def sgd(
    *, rate: Positive = 1e-2, momentum: Share = 0.0, nesterov: bool = False, weight_decay: NotNegative = 0.0,
    warmup: Natural = 0, decay: Shape | Decay = "constant", max_norm: Norm = 1.0, ema: Share | Ema | None = None,
) -> Optimizer:  # fmt: skip
    """Gradient descent: no memory beside the parameters' own, and one more copy of them with momentum.

    momentum: how much of the last step goes along. nesterov: the gradient is that of the place where momentum leads. weight_decay: added
    to the gradient, times the weight.
    """
    at_least(0, weight_decay=weight_decay, momentum=momentum)
    if nesterov and momentum == 0:
        raise UserError("nesterov: got true without momentum, takes momentum above 0")

    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    return _optimizer(make, rate, warmup, decay, max_norm, ema, half=True, shards="rows")


def muon(
    *, rate: Positive = 1e-3, momentum: Share = 0.95, weight_decay: NotNegative = 0.1, warmup: Natural = 0,
    decay: Shape | Decay = "constant", max_norm: Norm = 1.0, ema: Share | Ema | None = None,
) -> Optimizer:  # fmt: skip
    """Muon: the momentum of every matrix made orthogonal (Newton-Schulz), at AdamW's step size. Matrices alone, so that it suits LoRA.

    momentum: Nesterov's. weight_decay: times the rate, each step.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024). Paper: Muon is Scalable for LLM Training,
    arXiv 2502.16982.

    Deviations: torch's, with ``match_rms_adamw``. Errors: UserError for trained parameters that are no matrices, and for a torch
    without it.
    """
    at_least(0, weight_decay=weight_decay, momentum=momentum)

    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        kind: Any = vars(torch.optim).get("Muon")
        if kind is None:
            raise UserError(f"optimizer: torch {torch.__version__} has no Muon; takes torch 2.9 or newer, or another optimizer")
        trained = list(parameters)
        if odd := [parameter for parameter in trained if parameter.ndim != 2]:
            shape = list(odd[0].shape)
            raise UserError(f"optimizer: muon takes matrices, got {len(odd)} of other shapes, such as {shape}; takes LoRA, or adamw")
        made: torch.optim.Optimizer = kind(trained, lr=rate, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        return made

    return _optimizer(make, rate, warmup, decay, max_norm, ema, half=True, shards="matrices")


def _optimizer(
    make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
    rate: float | None,
    warmup: int,
    decay: Shape | Decay,
    max_norm: float,
    ema: Share | Ema | None,
    *,
    half: bool = False,
    shards: Literal["rows", "matrices"],
) -> Optimizer:
    """half: whether it can train parameters in float16. shards: what it has to see of one in shards: the rows that a process has, or the
    whole matrix. Errors: UserError by ``make`` for parameters that it cannot train."""
    at_least(0, warmup=warmup)
    above(0, max_norm=max_norm, **({} if rate is None else {"rate": rate}))
    if ema is not None and not isinstance(ema, Ema):
        if not 0 <= ema < 1:
            raise UserError(f"ema: got {ema}, takes a number from 0 to below 1")
        ema = Ema(ema)

    def checked(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        trained = list(parameters)
        if not half and (count := sum(parameter.dtype == torch.float16 for parameter in trained)):
            raise UserError(
                f"optimizer: {count} of {len(trained)} trained parameters are float16, where squares of small gradients are 0 and updates "
                f"grow without end; takes policy.dtype: float32 or bfloat16, policy.lora, sgd, or adamw with eps: {HALF_EPS:g} or more"
            )
        cut = any(is_cut(parameter) for parameter in trained)
        return OfWholeMatrices(trained, make) if cut and shards == "matrices" else make(trained)

    return Optimizer(checked, math.nan if rate is None else rate, warmup, decay, max_norm, ema)


def _refuse_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"betas: got {list(betas)}, takes two numbers from 0 to below 1")
