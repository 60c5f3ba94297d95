"""How a pipeline's own classifier-free guidance is put together, measured and not assumed.

A pipeline that guides asks its denoiser about both prompts, in one call of twice the rows or in two calls, in an order of its own, and
combines its outputs. Before a guided call, its first step is run with constants in the outputs' places: what arrives at the scheduler
tells which branch is the negative one, and the weight of each. So a rule of our own can take the place of the pipeline's: the outputs
are changed so that its combination of them comes out as ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mmalign.guidance._models import Progress, intercepted
from mmalign.guidance._run import ALL, GuidedRun
from mmalign.policies.pipelines.calls.interception import Finished
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.policies.pipelines.calls.scheduler_paths import clean_and_noise
from mmalign.policies.pipelines.rollouts.probing import BASE
from mmalign.types import Prediction, UserError

Rule = Callable[[Tensor, Tensor, float], Tensor]
"""(output for the negative prompt, output for the prompt, how far the schedule has gone) -> what is to come out."""


@dataclass
class Branches:
    """How a denoiser's outputs become what the scheduler sees.

    kind: ``one`` (no guidance), ``halves`` (of one call's rows) or ``calls`` (two of them). negative: the place of the negative
    branch, 0 or 1. shares: weights of the two branches, in order, which sum to 1. sign: of what the scheduler sees, against the outputs.
    where: ``[N]``, the numbers of a row of the outputs that it sees, in its order; None: they are of one shape.
    """

    kind: str
    negative: int = 0
    shares: tuple[float, float] = (0.0, 1.0)
    sign: float = 1.0
    where: Tensor | None = None

    def combined(self, outputs: Sequence[Tensor]) -> Tensor:
        """The pipeline's combination of the branches' outputs, in order."""
        return outputs[0] if self.kind == "one" else self.shares[0] * outputs[0] + self.shares[1] * outputs[1]


def measured(run: GuidedRun, name: str, *, needs_both: bool = True) -> Branches:
    """The branches of the call that is about to be made. Errors: UserError where it has other than one or two, or combines otherwise."""
    with torch.no_grad():
        outputs: list[Any] = []

        def recorded(number: int, own: Any, args: Any, kwargs: Any) -> Any:
            outputs.append(own(*args, **kwargs))
            return outputs[-1]

        _first_step(run, recorded)
        rows = len(run.call.prompts)
        kind = _kind(outputs, rows)
        if kind == "one":
            if needs_both:
                raise UserError(
                    f"guidance {name}: {type(run.pipe).__name__} asks about one prompt alone in this call; give it a guidance_scale"
                    " above 1 (and a negative_prompt, where it takes true_cfg_scale)"
                )
            none, all_of = _response(run, outputs, kind, ()), _response(run, outputs, kind, (0,))
            return Branches("one", sign=math.copysign(1.0, _gain(none, all_of)), where=_where(run, name, outputs, none, all_of))
        none = _response(run, outputs, kind, ())
        gains = [_gain(none, _response(run, outputs, kind, (place,))) for place in (0, 1)]
        where = _where(run, name, outputs, none, _response(run, outputs, kind, (0, 1)))
    total = sum(gains)
    if not all(map(math.isfinite, gains)) or abs(total) < 1e-6 or abs(gains[0]) > 1e4:
        raise UserError(f"guidance {name}: {type(run.pipe).__name__} combines its two predictions in another way than by their sum")
    shares = (gains[0] / total, gains[1] / total)
    return Branches(kind, 0 if shares[0] < shares[1] else 1, shares, _sign(run, total), where)


def _kind(outputs: list[Any], rows: int) -> str:
    sizes = [len(tensor_of(output)) for output in outputs]
    if len(sizes) == 1 and sizes[0] % 2 == 0 and sizes[0] >= 2 * rows:
        return "halves"
    if len(sizes) == 1:
        return "one"
    if len(sizes) == 2 and sizes[0] == sizes[1]:
        return "calls"
    raise UserError(f"guidance: {len(sizes)} calls of the denoiser in one step, of {', '.join(map(str, sizes))} rows; takes one or two")


def tensor_of(output: Any) -> Tensor:
    """The tensor in a denoiser's output. Errors: UserError for an output of several."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len(tensors) != 1:
        raise UserError(f"guidance: the denoiser gives {len(tensors)} tensors, takes one that gives one")
    return tensors[0]


def _with(output: Any, tensor: Tensor) -> Any:
    """A denoiser's output with another tensor in its place."""
    return tree_map(lambda leaf: tensor if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, output)


def _first_step(run: GuidedRun, answer: Callable[..., Any]) -> Prediction:
    """The first step's prediction, the denoisers' outputs being those of ``answer(number, own call, args, kwargs)``."""
    numbers, predictions = iter(range(10**9)), list[Prediction]()

    def make(name: str, net: nn.Module, own: Any) -> Any:
        return lambda *args, **kwargs: answer(next(numbers), own, args, kwargs)

    def stop(moment: Moment) -> Tensor:
        predictions.append(moment.prediction)
        raise Finished

    rows = range(len(run.call.prompts))
    with intercepted(run.pipe, make):
        run.until_finished(rows, [0] * len(rows), Player(stop))
    return predictions[0]


def _response(run: GuidedRun, outputs: list[Any], kind: str, ones: tuple[int, ...]) -> Prediction:
    """The first step's prediction where some branches give ones and the others zeros."""

    def constant(number: int, *call: Any) -> Any:
        value = tensor_of(outputs[number])
        if kind == "halves":
            half = len(value) // 2
            tensor = torch.cat([torch.full_like(value[:half], float(0 in ones)), torch.full_like(value[half:], float(1 in ones))])
        else:
            tensor = torch.full_like(value, float(number in ones))
        return _with(outputs[number], tensor)

    return _first_step(run, constant)


def _where(run: GuidedRun, name: str, outputs: list[Any], none: Prediction, ones: Prediction) -> Tensor | None:
    """See ``Branches``: found by outputs that are the numbers 0, 1, 2, ... of a row, a digit at a time, in all branches.

    none, ones: what is predicted where all are zeros, and ones. Errors: UserError where what arrives is no such numbers.
    """
    row = tensor_of(outputs[0])[0]
    shape = none.clean.shape[1:]
    if row.shape == shape or row.shape == (2 * shape[0], *shape[1:]):  # the second with a variance
        return None
    numbers, where, digit = torch.arange(row.numel()), torch.zeros(math.prod(shape), dtype=torch.int64), 0
    which = max((0, 1), key=lambda estimate: float((ones[estimate] - none[estimate]).abs().max()))
    scale = (ones[which] - none[which])[0].double().flatten().cpu()
    while BASE**digit < len(numbers):
        digits = (numbers // BASE**digit % BASE).view(row.shape).to(row)
        told = _first_step(run, lambda number, *call, digits=digits: _with(outputs[number], digits.expand_as(tensor_of(outputs[number]))))
        seen = (told[which] - none[which])[0].double().flatten().cpu() / scale
        if not bool(((seen - seen.round()).abs() < 0.1).all() & (seen.round() >= 0).all() & (seen.round() < BASE).all()):
            raise UserError(f"guidance {name}: {type(run.pipe).__name__} shows its scheduler something else than its denoiser's numbers")
        where, digit = where + seen.round().long() * BASE**digit, digit + 1
    if len(where.unique()) < len(where):
        raise UserError(f"guidance {name}: {type(run.pipe).__name__} shows its scheduler numbers of its denoiser more than once")
    return where


def _gain(none: Prediction, some: Prediction) -> float:
    """How the prediction intercepted, by the estimate (clean or noise) that did so more."""
    changes = [float((b - a).double().mean()) for a, b in zip(none, some, strict=True)]
    return max(changes, key=abs)


def _sign(run: GuidedRun, total: float) -> float:
    """Whether a pipeline negates what its denoiser says: ones that arrive as ones move the estimates as the parametrisation has it."""
    moments: list[Moment] = []

    def stop(moment: Moment) -> Tensor:
        ones, x = torch.ones_like(moment.x.float()), torch.zeros_like(moment.x.float())
        moments.append(moment._replace(prediction=clean_and_noise(run.pipe.scheduler, ones, x, moment.t)))
        raise Finished

    rows = range(len(run.call.prompts))
    run.until_finished(rows, [0] * len(rows), Player(stop), skip=ALL)
    expected = max((float(value.double().mean()) for value in moments[0].prediction), key=abs)
    return math.copysign(1.0, expected * total)


# A rule in the place of the pipeline's


@dataclass
class BranchOutputs:
    """The outputs of the step that is going on, by branch in the pipeline's order."""

    branches: Branches
    tensors: list[Tensor] = field(default_factory=list)

    def add(self, value: Tensor) -> None:
        """One more call's output; a step's first call begins anew."""
        if self.branches.kind == "calls":
            self.tensors = [*(self.tensors if len(self.tensors) == 1 else []), value]
        else:
            self.tensors = list(value.chunk(2)) if self.branches.kind == "halves" else [value]

    def seen(self, scheduler: Any, change: Tensor, moment: Moment) -> Prediction:
        """How a change of what the pipeline combines moves its prediction: the part of it that does not depend on the latent."""
        moved, where = (self.branches.sign * change).float(), self.branches.where
        if where is not None:
            moved = moved.flatten(1)[:, where.to(moved.device)].view(moment.x.shape)
        return clean_and_noise(scheduler, moved, torch.zeros_like(moment.x.float()), moment.t)


@contextmanager
def ruled(run: GuidedRun, branches: Branches, rule: Rule, negative_of: Any = None) -> Iterator[BranchOutputs]:
    """The pipeline's combination comes out as ``rule`` in the block. negative_of: (name, net, own) -> the negative branch's call."""
    progress, outputs = Progress(run.pipe), BranchOutputs(branches)

    def make(name: str, net: nn.Module, own: Any) -> Any:
        negative = own if negative_of is None else negative_of(name, net, own)

        def call(*args: Any, **kwargs: Any) -> Any:
            place = progress(args, kwargs)
            if branches.kind == "halves":
                return _of_halves(branches, rule, place, own, negative, args, kwargs, outputs)
            return _of_calls(branches, rule, place, own, negative, args, kwargs, outputs)

        return call

    with intercepted(run.pipe, make):
        yield outputs


def _of_halves(
    branches: Branches, rule: Rule, place: float, own: Any, negative: Any, args: Any, kwargs: Any, outputs: BranchOutputs
) -> Any:
    if negative is own:
        output = own(*args, **kwargs)
        outputs.tensors = list(tensor_of(output).chunk(2))
    else:
        size = len(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim >= 3))
        halves = [_half((args, kwargs), which, size) for which in (0, 1)]
        both = [(negative if which == branches.negative else own)(*halves[which][0], **halves[which][1]) for which in (0, 1)]
        output, outputs.tensors = both[0], [tensor_of(one) for one in both]
    combined = rule(outputs.tensors[branches.negative], outputs.tensors[1 - branches.negative], place)
    return _with(output, torch.cat([combined, combined]))


def _of_calls(branches: Branches, rule: Rule, place: float, own: Any, negative: Any, args: Any, kwargs: Any, outputs: BranchOutputs) -> Any:
    number = len(outputs.tensors) % 2
    output = (negative if number == branches.negative else own)(*args, **kwargs)
    outputs.tensors = [*(outputs.tensors if number else []), tensor_of(output)]
    if number == 0:
        return output
    combined = rule(outputs.tensors[branches.negative], outputs.tensors[1 - branches.negative], place)
    earlier, last = branches.shares
    return _with(output, (combined - earlier * outputs.tensors[0]) / last)


def _half(values: Any, which: int, size: int) -> Any:
    """One half of all in ``values`` that has ``size`` rows."""
    half = slice(0, size // 2) if which == 0 else slice(size // 2, size)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[half] if value.ndim and len(value) == size else value
        if isinstance(value, dict):
            return {key: cut(inner) for key, inner in value.items()}
        if isinstance(value, list) and len(value) == size:
            return value[half]
        return type(value)(cut(inner) for inner in value) if type(value) in (tuple, list) else value

    return cut(values)
