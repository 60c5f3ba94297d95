"""Which denoising steps are stochastic and trained: ``[T]`` bool masks.

A window is a function ``(num_steps, step, rng) -> [num_steps] bool``: ``step`` counts training steps from 0, and ``rng`` is the
only source of randomness. It is asked once for a rollout, so that all rows of a group are random at the same steps: where they were
not, their rewards would compare the places, and not the rows. Steps outside the window take the ``ode`` kernel and stay out of the
mask. Step 0 is the noisiest. Errors: UserError, for hyper-parameters when the window is made, and for too few steps when it is called.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Fraction, Natural, NotNegative, Proportion, Steps
from mmalign.types import UserError

__all__ = ["all_but_last", "everything", "first_fraction", "growing_window", "random_subset", "random_window", "sliding_window"]

Window = Callable[[int, int, torch.Generator], Tensor]


def everything() -> Window:
    """All steps. With ``last="ode"``, ``cps`` or ``ddim`` the last one has std 0, so that there is nothing to train in it."""
    return lambda num_steps, step, rng: _between(num_steps, 0, num_steps)


def all_but_last(*, count: Natural = 1) -> Window:
    """All steps but the last ``count``: Flow-GRPO (``timestep_fraction=0.99`` in flow_grpo) and DanceGRPO; the default.

    count: 0 is ``everything``; 2 for schedules that end in a tiny level before 0 (diffusers with a static shift): a random step into it
    leaves noise in the image just as the last one does.

    Errors: UserError for fewer than 0, and where no step is left.

    Examples:
        >>> mm.windows.all_but_last()(4, 0, torch.Generator()).tolist()
        [True, True, True, False]
    """
    _require(count >= 0, f"all_but_last.count: got {count}, takes 0 or more")

    def window(num_steps: int, step: int, rng: torch.Generator) -> Tensor:
        _require(num_steps > count, f"all_but_last.count: got {count}, which leaves none of {num_steps} steps")
        return _between(num_steps, 0, num_steps - count)

    return window


def first_fraction(*, fraction: Fraction = 0.5) -> Window:
    """The first ``int(fraction * num_steps)`` steps, at least one: ``timestep_fraction`` in flow_grpo.

    The first steps settle the layout. DanceGRPO means another thing by the same name: a random choice of steps in each row.

    fraction: above 0, up to 1.

    Errors: UserError for another fraction.

    Examples:
        >>> mm.windows.first_fraction(fraction=0.5)(5, 0, torch.Generator()).tolist()
        [True, True, False, False, False]
    """
    _require(0 < fraction <= 1, f"first_fraction.fraction: got {fraction}, takes a number above 0, up to 1")
    return lambda num_steps, step, rng: _between(num_steps, 0, max(1, _whole(fraction * num_steps)))


def random_window(*, size: Count = 3, within: tuple[Proportion, Proportion] = (0.0, 0.5)) -> Window:
    """``size`` neighbouring steps at a random place, new at each training step: Flow-GRPO-Fast (size 2 or 3, first half).

    size: steps. within: the part of the trajectory in which the whole window lies, as fractions of its steps. The last step is left
    out where ``within`` reaches it: it has nothing to train.

    Errors: UserError for a window that does not fit.

    Examples:
        >>> window = mm.windows.random_window(size=2, within=(0.0, 0.5))(10, 0, torch.Generator().manual_seed(0))
        >>> int(window.sum()), bool(window[5:].any())
        (2, False)
    """
    _check_span("random_window", size, within)

    def window(num_steps: int, step: int, rng: torch.Generator) -> Tensor:
        low, starts = _starts("random_window", num_steps, size, within)
        start = low + int(torch.randint(starts, (), generator=rng, device=rng.device))
        return _between(num_steps, start, start + size)

    return window


def random_subset(*, fraction: Fraction = 0.6) -> Window:
    """``int(fraction * T)`` steps, at least one, drawn from all but the last, new at each training step: DanceGRPO's ``timestep_fraction``.

    There each row draws its own; here, as with every window, rows are trained on the same steps.

    fraction: above 0, up to 1.

    Errors: UserError for another fraction, and for a trajectory of one step.

    Examples:
        >>> window = mm.windows.random_subset(fraction=0.5)(8, 0, torch.Generator().manual_seed(0))
        >>> int(window.sum()), bool(window[-1])
        (4, False)
    """
    _require(0 < fraction <= 1, f"random_subset.fraction: got {fraction}, takes a number above 0, up to 1")

    def window(num_steps: int, step: int, rng: torch.Generator) -> Tensor:
        _require(num_steps > 1, f"random_subset: got a trajectory of {num_steps} step, takes 2 or more")
        count = min(max(1, _whole(fraction * num_steps)), num_steps - 1)
        chosen = torch.zeros(num_steps, dtype=torch.bool)
        chosen[torch.randperm(num_steps - 1, generator=rng, device=rng.device)[:count].cpu()] = True
        return chosen

    return window


def growing_window(*, smallest: Count = 14, largest: Count = 20, every: Steps = 25, by: Count = 1) -> Window:
    """The last steps, at first few and then more: what is close to the data is learned first (B2-DiffuRL's progressive backward training).

    Paper: B2-DiffuRL, https://arxiv.org/abs/2503.11240

    Args:
        smallest, largest: denoising steps at first, and in the end; the last one, into clean data, is counted and has nothing to train
            where its kernel has no noise there.
        every: training steps between growths. by: steps that are added then.

    Errors: UserError where the largest is below the smallest, and for a trajectory shorter than it.

    Examples:
        >>> window = mm.windows.growing_window(smallest=2, largest=4, every=10)
        >>> [window(5, step, torch.Generator()).nonzero().flatten().tolist() for step in (0, 10, 90)]
        [[3, 4], [2, 3, 4], [1, 2, 3, 4]]
    """
    _require(1 <= smallest <= largest, f"growing_window: got smallest={smallest}, largest={largest}, takes 1 or more, rising")
    _require(every >= 1 and by >= 1, f"growing_window: got every={every}, by={by}, takes 1 or more")

    def window(num_steps: int, step: int, rng: torch.Generator) -> Tensor:
        _require(largest <= num_steps, f"growing_window.largest: got {largest}, takes at most the {num_steps} steps of the schedule")
        return _between(num_steps, num_steps - min(largest, smallest + by * (step // every)), num_steps)

    return window


def sliding_window(
    *,
    size: Count = 4,
    every: Steps = 25,
    stride: Count = 1,
    within: tuple[Proportion, Proportion] = (0.0, 1.0),
    wrap: bool = True,
    pace: Literal["steady", "decay", "exp_decay"] = "steady",
    decay: NotNegative = 0.1,
    after: Natural = 13,
) -> Window:
    """``size`` neighbouring steps that move from noise to data: MixGRPO's progressive strategy, and its two that hurry towards the end.

    Paper: MixGRPO, https://arxiv.org/abs/2507.21802; its fourth strategy is ``random_window``.

    Args:
        size: denoising steps. every: training steps between moves (``iters_per_group``).
        stride: steps per move (``prog_overlap_step``).
        within: as in ``random_window``.
        wrap: begin again at the end (``roll_back``), else stay there.
        pace: how long the window stays at step i of T: ``steady``, ``every``; ``decay``, from ``every`` down to a quarter of it, 1 or more,
            in proportion to ``i / T``; ``exp_decay``, ``ceil(every exp(-decay max(0, i - after)))``.
        decay, after: of ``exp_decay``.

    Errors: UserError for a window that does not fit.

    Examples:
        >>> window = mm.windows.sliding_window(size=2, every=25)
        >>> [window(5, step, torch.Generator()).nonzero().flatten().tolist() for step in (0, 25, 50, 75)]
        [[0, 1], [1, 2], [2, 3], [0, 1]]
        >>> hurried = mm.windows.sliding_window(size=1, every=8, pace="decay")  # 8 at step 0, 8 - 6 / 4 at step 1, ...
        >>> [int(hurried(4, step, torch.Generator()).nonzero()) for step in (7, 8, 13, 14, 18, 19)]
        [0, 1, 1, 2, 2, 0]
    """
    _check_span("sliding_window", size, within)
    _require(every >= 1 and stride >= 1, f"sliding_window: got every={every}, stride={stride}, takes 1 or more")
    _require(pace in ("steady", "decay", "exp_decay"), f"sliding_window.pace: got {pace!r}, takes 'steady', 'decay' or 'exp_decay'")
    _require(decay >= 0 and after >= 0, f"sliding_window: got decay={decay}, after={after}, takes 0 or more")

    def stay(place: int, num_steps: int) -> int:
        if pace == "decay":
            least, part = max(1, every // 4), place / num_steps
            return max(least, int(every * (1 - part) + least * part))
        return math.ceil(every * math.exp(-decay * max(0, place - after))) if pace == "exp_decay" else every

    def window(num_steps: int, step: int, rng: torch.Generator) -> Tensor:
        low, starts = _starts("sliding_window", num_steps, size, within)
        places = range(low, low + starts, stride)
        ends = list(itertools.accumulate(stay(place, num_steps) for place in places))
        now = step % ends[-1] if wrap else min(step, ends[-1] - 1)
        start = places[bisect.bisect_right(ends, now)]
        return _between(num_steps, start, start + size)

    return window


def _between(num_steps: int, low: int, high: int) -> Tensor:
    place = torch.arange(num_steps)
    return (place >= low) & (place < high)


def _starts(owner: str, num_steps: int, size: int, within: tuple[Proportion, Proportion]) -> tuple[int, int]:
    """The first place where a window can start, and the number of such places."""
    low, high = _whole(within[0] * num_steps), min(_whole(within[1] * num_steps), num_steps - 1)
    _require(high - low >= size, f"{owner}.size: got {size}, takes at most {max(high - low, 0)} within={within} of {num_steps} steps")
    return low, high - low - size + 1


def _whole(number: float) -> int:
    return int(number + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _check_span(owner: str, size: int, within: tuple[Proportion, Proportion]) -> None:
    _require(size >= 1, f"{owner}.size: got {size}, takes 1 or more")
    _require(len(within) == 2 and 0 <= within[0] < within[1] <= 1, f"{owner}.within: got {within}, takes two rising numbers in 0..1")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
