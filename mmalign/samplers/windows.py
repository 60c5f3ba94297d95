"""Which denoising steps are stochastic and trained: ``[T]`` bool masks.

A window is a function ``(num_steps, step, rng) -> [num_steps] bool``: ``step`` counts training steps from 0, and ``rng`` is the
only source of randomness. Steps outside the window take the ``ode`` kernel and stay out of the mask. Step 0 is the noisiest.
Errors: UserError, for hyper-parameters when the window is made, and for too few steps when it is called.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Fraction, Natural, Proportion, Steps
from mmalign.types import UserError

__all__ = ["all_but_last", "everything", "first_fraction", "random_window", "sliding_window"]

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


def sliding_window(
    *, size: Count = 4, every: Steps = 25, stride: Count = 1, within: tuple[Proportion, Proportion] = (0.0, 1.0), wrap: bool = True
) -> Window:
    """``size`` neighbouring steps that move from noise to data: MixGRPO's progressive strategy.

    Paper: MixGRPO, https://arxiv.org/abs/2507.21802

    Args:
        size: denoising steps. every: training steps between moves (``iters_per_group``).
        stride: steps per move (``prog_overlap_step``).
        within: as in ``random_window``.
        wrap: begin again at the end (``roll_back``), else stay there.

    Errors: UserError for a window that does not fit.

    Examples:
        >>> window = mm.windows.sliding_window(size=2, every=25)
        >>> [window(5, step, torch.Generator()).nonzero().flatten().tolist() for step in (0, 25, 50, 75)]
        [[0, 1], [1, 2], [2, 3], [0, 1]]
    """
    _check_span("sliding_window", size, within)
    _require(every >= 1 and stride >= 1, f"sliding_window: got every={every}, stride={stride}, takes 1 or more")

    def window(num_steps: int, step: int, rng: torch.Generator) -> Tensor:
        low, starts = _starts("sliding_window", num_steps, size, within)
        moves, places = step // every, (starts - 1) // stride + 1
        start = low + stride * (moves % places if wrap else min(moves, places - 1))
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
