"""Which of a denoiser's work is asked without the prompt, for guidance alone, and that work without a graph.

A pipeline that guides asks its denoiser about each row with its prompt and without, in one call of twice the rows or in two calls, in an
order of its own, and in some of its steps perhaps. Which is which is measured: a call of two prompts is led through its schedule, and
led through it again with the prompts exchanged and all else as it was (latents, images and their order). What the denoiser is then
told otherwise belongs to the prompts, and what it is told as before does not. So nothing is assumed of how outputs are combined, and
the pipeline's own code still does that. Rows are found by how arguments grow from one prompt to two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mmalign.policies.pipelines.calls.interception import instead_of_calls, skipped
from mmalign.types import UserError

KEY = "policy.schedule.guidance_gradient"
SAME = 5e-3  # relative: an encoder's last bits depend on the place of a row in its batch

ONE_ROW = ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError
"""What pipelines raise that take no two prompts."""

Path = tuple[Any, ...]


class Asked(NamedTuple):
    """One call of a denoiser. without: the rows that are asked without the prompt. by_row: the arguments with an entry for each row."""

    without: Literal["none", "all", "first half", "second half"]
    by_row: frozenset[Path] = frozenset()


Branches = tuple[tuple[Asked, ...], ...]
"""The calls of the denoisers in each step."""


# The measurement


@torch.no_grad()
def measured(pipe: Any, denoisers: Mapping[str, nn.Module], lead: Callable[[list[int]], None]) -> Branches:
    """The branches of a pipeline's call.

    lead: takes rows, 0 and 1 two different prompts; calls the pipeline with these rows' prompts, with everything else as it is for the
    first so many rows, and with a player under whom latents stand still until the last step.

    Errors: UserError where no row is asked without its prompt, where none is asked with it, and where rows are neither in two halves.
    """
    alone, both, exchanged = (_questions(pipe, denoisers, lead, rows) for rows in ([0], [0, 1], [1, 0]))
    name = type(pipe).__name__
    counts = [[len(calls) for calls in steps] for steps in (alone, both, exchanged)]
    if not counts[0] == counts[1] == counts[2]:
        raise UserError(f"{KEY}: got conditional, and {name} calls its denoiser otherwise for two prompts than for one; takes both")
    steps = [[_asked(name, *calls) for calls in zip(*three, strict=True)] for three in zip(alone, both, exchanged, strict=True)]
    kinds = {asked.without for calls in steps for asked in calls}
    if kinds <= {"none"}:
        raise UserError(
            f"{KEY}: got conditional, and {name} asks its denoiser about nothing but the prompts in this call; takes both, or guidance "
            "(a guidance scale above 1, and a negative_prompt where the pipeline takes true_cfg_scale)"
        )
    if kinds == {"all"}:
        raise UserError(f"{KEY}: got conditional, and what {name} asks its denoiser does not depend on the prompt; takes both")
    return tuple(map(tuple, steps))


def _questions(pipe: Any, denoisers: Mapping[str, nn.Module], lead: Callable[[list[int]], None], rows: list[int]) -> list[list[Any]]:
    """What the denoisers are asked, ``(args, kwargs)`` by step and call; they run once for each shape alone."""
    steps: list[list[Any]] = []
    last: dict[int, list[Any]] = {}

    def note(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps.extend([] for _ in range(len(steps), pipe.scheduler.column + 1))
            leaves, form = tree_flatten((args, kwargs))
            before = last.get(len(steps[-1]), [])
            kept = [old if _equal(old, leaf) else leaf for old, leaf in itertools.zip_longest(before[: len(leaves)], leaves)]
            last[len(steps[-1])] = kept  # what is as it was a step before is held once
            steps[-1].append(tree_unflatten(kept, form))
            return own(*args, **kwargs)

        return call

    with skipped(denoisers, lambda: True, len(rows), {}), instead_of_calls(denoisers, note):
        lead(rows)
    return steps


def _asked(name: str, alone: Any, both: Any, exchanged: Any) -> Asked:
    """What one call is. alone, both, exchanged: its ``(args, kwargs)`` for one prompt, for two, and for the two in the other order."""
    first, second, by_row = False, False, set[Path]()
    for path, grows, one, other in _arguments(alone, both, exchanged):
        moved = [_moved(*pair) for pair in zip(one, other, strict=True)] if grows else [_moved(one, other)] * 2
        by_row |= {path} if grows else set()
        halves = moved[: len(moved) // 2], moved[len(moved) // 2 :]
        if any(any(half) and not all(half) for half in halves):
            raise UserError(
                f"{KEY}: got conditional, and {name} asks its denoiser about {len(moved)} rows for 2 prompts, of which those without a "
                "prompt are no half; takes both"
            )
        first, second = first or any(halves[0]), second or any(halves[1])
    if first == second:
        return Asked("none" if first else "all")
    return Asked("second half" if first else "first half", frozenset(by_row))


def _arguments(alone: Any, both: Any, exchanged: Any, path: Path = ()) -> Iterator[tuple[Path, bool, Any, Any]]:
    """(place, whether it has entries for the rows, its value for both prompts, and for them exchanged) of every argument."""
    if isinstance(both, (Tensor, list)) and _size(both) == 2 * _size(alone) == _size(exchanged) > 0:
        yield path, True, both, exchanged
    elif isinstance(both, (Mapping, tuple, list)):
        for key in both if isinstance(both, Mapping) else range(len(both)):
            yield from _arguments(_at(alone, key), both[key], _at(exchanged, key), (*path, key))
    else:
        yield path, False, both, exchanged


def _size(value: Any) -> int:
    """Entries of a tensor or a list; 0 of all else."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else 0
    return len(value) if isinstance(value, list) else 0


def _at(value: Any, key: Any) -> Any:
    """What stands at a place; None where there is none."""
    if isinstance(value, Mapping):
        return value.get(key)
    return value[key] if isinstance(value, (tuple, list)) and key in range(len(value)) else None


def _moved(one: Any, other: Any) -> bool:
    """Whether an argument is another one, beyond rounding; what is no data is not looked at."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) != len(other) or any(map(_moved, one, other))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return isinstance(one, (Tensor, int, float, str)) and (isinstance(other, Tensor) or isinstance(one, Tensor) or one != other)
    if one.shape != other.shape or not one.is_floating_point():
        return not torch.equal(one, other)
    return bool((one.double() - other.double()).abs().sum() > SAME * one.double().abs().sum())


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)


# Without a graph


@contextmanager
def detached(pipe: Any, denoisers: Mapping[str, nn.Module], branches: Branches) -> Iterator[None]:
    """While the block lasts, what is asked without the prompt says nothing of the parameters, and costs no backward pass.

    A call of both halves becomes two, with and without gradient too, so that a rollout and its replay run the same kernels.
    """
    place = [-1, -1]  # the step, and the number of the call in it

    def split(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            column = pipe.scheduler.column
            place[:] = column, (place[1] + 1 if place[0] == column else 0)
            asked = branches[column][place[1]] if column < len(branches) and place[1] < len(branches[column]) else None
            if asked is None:
                raise UserError(f"{KEY}: got conditional, and {type(pipe).__name__} calls its denoiser otherwise than when it was measured")
            if asked.without in ("none", "all"):
                with _frozen(denoisers[name], (args, kwargs)) if asked.without == "all" else nullcontext():
                    return own(*args, **kwargs)
            answers = []
            for half in ("first half", "second half"):
                some_args, some_kwargs = _half((args, kwargs), half, asked.by_row)
                with _frozen(denoisers[name], (args, kwargs)) if half == asked.without else nullcontext():
                    answers.append(own(*some_args, **some_kwargs))
            return _joined(*answers)

        return call

    with instead_of_calls(denoisers, split):
        yield


def _frozen(module: nn.Module, call: Any) -> AbstractContextManager[Any]:
    """No graph to the parameters; one to the call's arguments, where these have one."""
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(call)):
        return _fixed([parameter for parameter in module.parameters() if parameter.requires_grad])
    return torch.no_grad()


@contextmanager
def _fixed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _half(value: Any, half: str, by_row: frozenset[Path], path: Path = ()) -> Any:
    """A call's arguments, those with an entry for each row cut to one half of the rows."""
    if path in by_row:
        return value[: len(value) // 2] if half == "first half" else value[len(value) // 2 :]
    if isinstance(value, dict):
        return {key: _half(inner, half, by_row, (*path, key)) for key, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_half(inner, half, by_row, (*path, place)) for place, inner in enumerate(value))
    return value


def _joined(one: Any, two: Any) -> Any:
    """Two answers of a denoiser as one: tensors and lists of rows put together, whatever holds them as the first has it."""
    if isinstance(one, Tensor):
        return torch.cat([one, two])
    if isinstance(one, list):
        return [*one, *two]
    if isinstance(one, Mapping):
        joined = {key: _joined(one[key], two[key]) for key in one}
        return joined if type(one) is dict else type(one)(**joined)
    return tuple(map(_joined, one, two)) if isinstance(one, tuple) else one
