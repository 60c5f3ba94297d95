"""What a pipeline's denoiser says of given latents, at times of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmalign.policies.pipelines.calls.calling import Caller, isolating, unguided
from mmalign.policies.pipelines.calls.interception import Finished, Made, Part, Place, watched
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.policies.pipelines.rollouts.recording import ALL
from mmalign.policies.pipelines.rollouts.reference_models import First
from mmalign.policies.pipelines.rollouts.replay import laid_out
from mmalign.policies.pipelines.rollouts.trajectories import Behind
from mmalign.types import Level, Prediction, UserError

BASE = 256  # of whole numbers up to which every type of latents is exact
Places = dict[int, Place | None]
"""Chunk of a video, 0 for all else -> where a pipeline makes its first latent, where it does not take one; kept once it is known."""


@torch.no_grad()
def first(caller: Caller, places: Places, example: Any, chunk: int = 0) -> First:
    """The timesteps and levels of a call, or of one of its chunks, from the step that it starts with, and its first latent, whose place is
    kept. example: a prompt. Errors: UserError for a chunk that the call does not come to.
    """
    firsts, latents = list[First](), list[Tensor]()

    def answer(moment: Moment) -> Tensor:
        if moment.chunk < chunk:
            return moment.x
        scheduler = caller.pipe.scheduler  # the one that is played
        at = len(scheduler.schedule) - moment.left
        levels = Level(*(value[at:] for value in scheduler.levels))
        firsts.append(First(scheduler.schedule[at:], levels, tuple(moment.x.shape[1:]), moment.x.dtype))
        latents.append(moment.x)
        raise Finished

    with watched(caller.pipe) as made:
        caller.until_finished([example], [0], Player(answer), [example], skip=ALL if chunk else 0)
    ask = partial(caller.until_finished, [example], [0], together=[example], skip=ALL)
    places[chunk] = place_of(made, latents[0], lambda player, place: ask(player, place=place), chunk)
    return firsts[0]


def place_of(made: Made, x: Tensor, ask: Callable[[Player, tuple[Place, Tensor]], None], chunk: int = 0) -> Place | None:
    """Where a pipeline made the latent that its scheduler was shown first, all of it or a part; None for nowhere.

    made: by its call. ask: makes that call again, with something in a place. chunk: of a video, whose first latent it is.
    """
    found = (_of_part(ask, chunk, some, x) for some in made.larger(x))
    return made.place(x) or next((place for place in found if place is not None), None)


def _of_part(ask: Callable[[Player, tuple[Place, Tensor]], None], chunk: int, made: tuple[Place, Tensor], x: Tensor) -> Place | None:
    """The place with the part of it that ``x`` is: the numbers 0, 1, 2, ... of a row are put there, a digit at a time, and those that the
    scheduler is shown say which it was; None where it is shown others."""
    (place, value), where, digit = made, torch.zeros(x[0].numel(), dtype=torch.int64), 0
    numbers = torch.arange(value[0].numel())
    while BASE**digit < len(numbers):
        seen, put = list[Tensor](), (numbers // BASE**digit % BASE).view(1, *value.shape[1:]).expand_as(value).to(value)

        def answer(moment: Moment, seen: list[Tensor] = seen) -> Tensor:
            if moment.chunk < chunk:
                return moment.x
            seen.append(moment.x[0].flatten().cpu())
            raise Finished

        ask(Player(answer), (place, put))
        if len(seen[0]) != len(where) or not bool(((seen[0] >= 0) & (seen[0] < BASE) & (seen[0] == seen[0].round())).all()):
            return None
        where, digit = where + seen[0].long() * BASE**digit, digit + 1
    known = bool((where < len(numbers)).all()) and len(where.unique()) == len(where)
    return place._replace(part=Part(where, len(numbers), tuple(x.shape[1:]))) if known else None


def probed(  # all that a call of rows is
    caller: Caller, places: Places, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level, behind: Behind | None = None,
    **beside: Any,
) -> Prediction:  # fmt: skip
    """Of all rows in one call, without guidance, with gradient.

    behind: the chunks before the one that is asked about: the call comes to it past what they became, the denoiser standing still.
    beside: arguments of the call.

    Errors: UserError for a pipeline whose first latent cannot be another.
    """
    moments, chunk = list[Moment](), 0 if behind is None else len(behind.ends)
    if chunk not in places:
        first(caller, places, prompts[0], chunk)

    def answer(moment: Moment) -> Tensor:
        if behind is not None and moment.chunk < chunk:
            return laid_out(behind.ends[moment.chunk].to(x.device))
        refuse_beside(caller)
        moments.append(moment)
        raise Finished

    player = Player(answer, timesteps=timesteps, levels=levels)
    seeds, skip = [0] * len(prompts), 0
    if behind is not None:
        seeds, skip = behind.starts.tolist(), behind.steps
        player = player._replace(beside=lambda number, own: laid_out(behind.beside[number].to(own)))
    place = places[chunk]
    placed: dict[str, Any] = {"latents": x} if place is None else {"place": (place, x)}
    arguments = {**beside, **unguided(caller.accepts, len(caller.denoisers)), **placed}
    caller.until_finished(prompts, seeds, player, list(dict.fromkeys(prompts)), skip=skip, **arguments)
    if not torch.equal(moments[0].x, x):
        name = type(caller.pipe).__name__
        raise UserError(f"probe: {name} makes its first latent inside its call, so another cannot be put in its place")
    return moments[0].prediction


def refuse_beside(caller: Caller) -> None:
    """Errors: UserError in a call that denoises more than its latent, with a denoiser that cannot leave that out."""
    if caller.pipe.scheduler.copies and not isolating(caller.denoisers):
        name = type(caller.pipe).__name__
        raise UserError(
            f"policy.of: {name} denoises something beside the latent, a sound say, and given latents have none of their noise level beside "
            "them; takes a call without that, or policy gradients"
        )


class Cut(NamedTuple):
    """How a pipeline puts the chunks of a video together: the ``shape`` of a row's whole latent, and the part of it that each chunk is, in
    the order in which they are made."""

    shape: tuple[int, ...]
    parts: list[Part]


@torch.no_grad()
def cut(caller: Caller, example: Any) -> Cut:
    """Found by calls in which every chunk becomes numbers of its own, a digit at a time: where these lie in what the call returns.

    example: a prompt. Errors: UserError for a pipeline that does not return the latents of its chunks, each number once.
    """
    marked = partial(_marked, caller, example)
    shapes, first_digit = marked(0, 1.0)
    _, opposite = marked(0, -1.0)
    total, rows = sum(math.prod(shape) for shape in shapes), [tuple(value.shape[1:]) for value in first_digit]
    of_chunks = [(one == -other) & (one >= 1) for one, other in zip(first_digit, opposite, strict=True)]
    whole = next((place for place in reversed(range(len(rows))) if int(of_chunks[place].sum()) == total), None)
    if whole is None:
        made = f"{type(caller.pipe).__name__} makes this video in chunks"
        raise UserError(f"method.gan: {made}, and does not return their latents, by which real videos could be cut; takes 0")
    at, digit = (first_digit[whole] - 1).long(), 1
    while BASE**digit < total:
        at, digit = at + (marked(digit, 1.0)[1][whole] - 1).long() * BASE**digit, digit + 1
    inside = torch.nonzero(of_chunks[whole].flatten()).flatten()
    order = inside[at.flatten()[inside].argsort()]  # the number that each place got counts chunk by chunk
    sizes = [math.prod(shape) for shape in shapes]
    size = math.prod(rows[whole])
    return Cut(rows[whole], [Part(where, size, shape) for where, shape in zip(order.split(sizes), shapes, strict=True)])


def _marked(caller: Caller, example: Any, digit: int, sign: float) -> tuple[list[tuple[int, ...]], list[Tensor]]:
    """The shapes of a row of each chunk, and the tensors of one row that a call returns, whose chunks end as a digit, plus 1 and times
    ``sign``, of the numbers 0, 1, 2, ..., which go on from chunk to chunk."""
    shapes = list[tuple[int, ...]]()

    def answer(moment: Moment) -> Tensor:
        if moment.left > 1:
            return moment.x
        start = sum(math.prod(shape) for shape in shapes)
        shapes.append(tuple(moment.x.shape[1:]))
        numbers = torch.arange(start, start + moment.x.numel())
        return sign * (numbers // BASE**digit % BASE + 1).view_as(moment.x).to(moment.x)

    returned = caller([example], [0], Player(answer), [example], ALL, output_type="latent", return_dict=False)
    return shapes, [leaf.double().cpu() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and len(leaf) == 1]
