"""How a pipeline's own classifier-free guidance is put together, measured and not assumed.

A pipeline that guides asks its denoiser about both prompts, in one call of twice the rows or in two calls, in an order of its own, and
combines the answers. Before a guided call, its first step is run with constants in the answers' places: what arrives at the scheduler
tells which branch is the negative one, and the weight of each. So a rule of our own can take the place of the pipeline's: the answers
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

from mmalign.guidance._run import Run
from mmalign.guidance._voices import Clock, answered
from mmalign.policies.pipelines.interception import Finished
from mmalign.policies.pipelines.scheduler import Moment, Player, clean_and_noise
from mmalign.types import Prediction, UserError

Rule = Callable[[Tensor, Tensor, float], Tensor]
"""(answer to the negative prompt, answer to the prompt, how far the schedule has gone) -> what is to come out."""


@dataclass
class Branches:
    """How answers become what the scheduler sees.

    kind: ``one`` (no guidance), ``halves`` (of one call's rows) or ``calls`` (two of them). negative: the place of the negative
    branch, 0 or 1. shares: weights of the two branches, in order, which sum to 1. sign: of what the scheduler sees, against the answers.
    """

    kind: str
    negative: int = 0
    shares: tuple[float, float] = (0.0, 1.0)
    sign: float = 1.0

    def combined(self, answers: Sequence[Tensor]) -> Tensor:
        """The pipeline's combination of the branches' answers, in order."""
        return answers[0] if self.kind == "one" else self.shares[0] * answers[0] + self.shares[1] * answers[1]


def measured(run: Run, name: str, *, needs_both: bool = True) -> Branches:
    """The branches of the call that is about to be made. Errors: UserError where it has other than one or two, or combines otherwise."""
    with torch.no_grad():
        said: list[Any] = []

        def listened(number: int, own: Any, args: Any, kwargs: Any) -> Any:
            said.append(own(*args, **kwargs))
            return said[-1]

        _first_step(run, listened)
        rows = len(run.asked.prompts)
        kind = _kind(said, rows)
        if kind == "one":
            if needs_both:
                raise UserError(
                    f"guidance {name}: {type(run.pipe).__name__} asks about one prompt alone in this call; give it a guidance_scale"
                    " above 1 (and a negative_prompt, where it takes true_cfg_scale)"
                )
            none, all_of = _response(run, said, kind, ()), _response(run, said, kind, (0,))
            return Branches("one", sign=math.copysign(1.0, _gain(none, all_of)))
        none = _response(run, said, kind, ())
        gains = [_gain(none, _response(run, said, kind, (place,))) for place in (0, 1)]
    total = sum(gains)
    if not all(map(math.isfinite, gains)) or abs(total) < 1e-6 or abs(gains[0]) > 1e4:
        raise UserError(f"guidance {name}: {type(run.pipe).__name__} combines its two predictions in another way than by their sum")
    shares = (gains[0] / total, gains[1] / total)
    return Branches(kind, 0 if shares[0] < shares[1] else 1, shares, _sign(run, total))


def _kind(said: list[Any], rows: int) -> str:
    sizes = [len(tensor_of(answer)) for answer in said]
    if len(sizes) == 1 and sizes[0] % 2 == 0 and sizes[0] >= 2 * rows:
        return "halves"
    if len(sizes) == 1:
        return "one"
    if len(sizes) == 2 and sizes[0] == sizes[1]:
        return "calls"
    raise UserError(f"guidance: {len(sizes)} calls of the denoiser in one step, of {', '.join(map(str, sizes))} rows; takes one or two")


def tensor_of(answer: Any) -> Tensor:
    """The tensor in a denoiser's answer. Errors: UserError for an answer of several."""
    found = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len(found) != 1:
        raise UserError(f"guidance: the denoiser answers with {len(found)} tensors, takes one that answers with one")
    return found[0]


def _with(answer: Any, tensor: Tensor) -> Any:
    """A denoiser's answer with another tensor in its place."""
    return tree_map(lambda leaf: tensor if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, answer)


def _first_step(run: Run, answer: Callable[..., Any]) -> Prediction:
    """The first step's prediction, the denoisers' calls answered by ``answer(number, own call, args, kwargs)``."""
    numbers, heard = iter(range(10**9)), list[Prediction]()

    def make(name: str, net: nn.Module, own: Any) -> Any:
        return lambda *args, **kwargs: answer(next(numbers), own, args, kwargs)

    def stop(moment: Moment) -> Tensor:
        heard.append(moment.prediction)
        raise Finished

    rows = range(len(run.asked.prompts))
    with answered(run.pipe, make):
        run.caller.until_finished(run.asked.prompts, [0] * len(rows), Player(stop), run.known, **run.asked.arguments(rows))
    return heard[0]


def _response(run: Run, said: list[Any], kind: str, ones: tuple[int, ...]) -> Prediction:
    """The first step's prediction where some branches answer ones and the others zeros."""

    def constant(number: int, *call: Any) -> Any:
        value = tensor_of(said[number])
        if kind == "halves":
            half = len(value) // 2
            found = torch.cat([torch.full_like(value[:half], float(0 in ones)), torch.full_like(value[half:], float(1 in ones))])
        else:
            found = torch.full_like(value, float(number in ones))
        return _with(said[number], found)

    return _first_step(run, constant)


def _gain(none: Prediction, some: Prediction) -> float:
    """How the prediction answered, by the estimate (clean or noise) that did so more."""
    changes = [float((b - a).double().mean()) for a, b in zip(none, some, strict=True)]
    return max(changes, key=abs)


def _sign(run: Run, total: float) -> float:
    """Whether a pipeline negates what its denoiser says: ones that arrive as ones move the estimates as the parametrisation has it."""
    heard: list[Moment] = []

    def stop(moment: Moment) -> Tensor:
        ones, x = torch.ones_like(moment.x.float()), torch.zeros_like(moment.x.float())
        heard.append(moment._replace(prediction=clean_and_noise(run.pipe.scheduler, ones, x, moment.t)))
        raise Finished

    rows = range(len(run.asked.prompts))
    run.caller.until_finished(run.asked.prompts, [0] * len(rows), Player(stop), run.known, skip=10**9, **run.asked.arguments(rows))
    expected = max((float(value.double().mean()) for value in heard[0].prediction), key=abs)
    return math.copysign(1.0, expected * total)


# A rule in the place of the pipeline's


@dataclass
class Heard:
    """The answers of the step that is going on, by branch in the pipeline's order."""

    branches: Branches
    answers: list[Tensor] = field(default_factory=list)

    def add(self, value: Tensor) -> None:
        """One more call's answer; a step's first call begins anew."""
        if self.branches.kind == "calls":
            self.answers = [*(self.answers if len(self.answers) == 1 else []), value]
        else:
            self.answers = list(value.chunk(2)) if self.branches.kind == "halves" else [value]

    def seen(self, scheduler: Any, change: Tensor, moment: Moment) -> Prediction:
        """How a change of what the pipeline combines moves its prediction: the part of it that does not depend on the latent."""
        found = (self.branches.sign * change).float()
        found = found.reshape(moment.x.shape) if found.numel() == moment.x.numel() else found  # or with a variance beside it
        return clean_and_noise(scheduler, found, torch.zeros_like(moment.x.float()), moment.t)


@contextmanager
def ruled(run: Run, branches: Branches, rule: Rule, speakers: Any = None) -> Iterator[Heard]:
    """The pipeline's combination comes out as ``rule`` while the block lasts. speakers: (name, net, own) -> the negative branch's call."""
    clock, heard = Clock(run.pipe), Heard(branches)

    def make(name: str, net: nn.Module, own: Any) -> Any:
        negative = own if speakers is None else speakers(name, net, own)

        def call(*args: Any, **kwargs: Any) -> Any:
            place = clock(args, kwargs)
            if branches.kind == "halves":
                return _of_halves(branches, rule, place, own, negative, args, kwargs, heard)
            return _of_calls(branches, rule, place, own, negative, args, kwargs, heard)

        return call

    with answered(run.pipe, make):
        yield heard


def _of_halves(
    branches: Branches, rule: Rule, place: float, own: Any, negative: Any, args: Any, kwargs: Any, heard: Heard
) -> Any:  # fmt: skip
    if negative is own:
        answer = own(*args, **kwargs)
        heard.answers = list(tensor_of(answer).chunk(2))
    else:
        size = len(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim >= 3))
        halves = [_half((args, kwargs), which, size) for which in (0, 1)]
        said = [(negative if which == branches.negative else own)(*halves[which][0], **halves[which][1]) for which in (0, 1)]
        answer, heard.answers = said[0], [tensor_of(one) for one in said]
    ruled = rule(heard.answers[branches.negative], heard.answers[1 - branches.negative], place)
    return _with(answer, torch.cat([ruled, ruled]))


def _of_calls(
    branches: Branches, rule: Rule, place: float, own: Any, negative: Any, args: Any, kwargs: Any, heard: Heard
) -> Any:  # fmt: skip
    number = len(heard.answers) % 2
    answer = (negative if number == branches.negative else own)(*args, **kwargs)
    heard.answers = [*(heard.answers if number else []), tensor_of(answer)]
    if number == 0:
        return answer
    ruled = rule(heard.answers[branches.negative], heard.answers[1 - branches.negative], place)
    earlier, last = branches.shares
    return _with(answer, (ruled - earlier * heard.answers[0]) / last)


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
