"""Windows: which steps are random and trained."""

from __future__ import annotations

import math

import pytest
import torch

from mmalign.samplers import windows
from mmalign.types import UserError


def chosen(window: windows.Window, num_steps: int, step: int = 0, seed: int = 0) -> list[int]:
    mask = window(num_steps, step, torch.Generator().manual_seed(seed))
    assert mask.dtype == torch.bool and mask.shape == (num_steps,)
    return mask.nonzero().squeeze(1).tolist()


def test_fixed_windows() -> None:
    assert chosen(windows.everything(), 4) == [0, 1, 2, 3]
    assert chosen(windows.all_but_last(), 4) == [0, 1, 2]
    assert chosen(windows.all_but_last(count=2), 4) == [0, 1]
    assert chosen(windows.first_fraction(fraction=0.5), 5) == [0, 1]
    assert chosen(windows.first_fraction(fraction=0.29), 100) == list(range(29))
    assert chosen(windows.first_fraction(fraction=0.01), 5) == [0]


def test_random_window_visits_every_place_inside_its_part_and_follows_the_generator() -> None:
    window = windows.random_window(size=3, within=(0.0, 0.5))
    seen = {tuple(chosen(window, 10, seed=seed)) for seed in range(50)}
    assert seen == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    assert chosen(window, 10, seed=7) == chosen(window, 10, step=3, seed=7)
    assert {chosen(windows.random_window(size=2, within=(0.5, 1.0)), 6, seed=seed)[0] for seed in range(50)} == {3}


def test_sliding_window_moves_to_the_data_and_begins_again() -> None:
    window = windows.sliding_window(size=2, every=10, stride=2)
    assert [chosen(window, 8, step=step) for step in (0, 9, 10, 29, 30)] == [[0, 1], [0, 1], [2, 3], [4, 5], [0, 1]]
    stays = windows.sliding_window(size=2, every=10, stride=2, wrap=False)
    assert chosen(stays, 8, step=1000) == [4, 5]
    assert chosen(windows.sliding_window(size=2, every=1), 8, step=5) == [5, 6]  # never the last step


def test_a_hurried_window_is_mixgrpo_s() -> None:
    """Its counter of iterations in a group, walked one by one, with its own rule of how many a place gets."""
    size, every, num_steps = 2, 12, 9
    for pace, iterations in (
        ("decay", lambda at: max(3, int(12 * (1 - at / 9) + 3 * at / 9))),
        ("exp_decay", lambda at: math.ceil(12 * math.exp(-0.5 * max(0, at - 2)))),
    ):
        window = windows.sliding_window(size=size, every=every, pace=pace, decay=0.5, after=2)  # type: ignore[arg-type]
        at, inside = 0, 0
        for step in range(120):
            assert chosen(window, num_steps, step=step) == [at, at + 1], (pace, step)
            inside += 1
            if inside >= iterations(at):
                at, inside = (at + 1) % 7, 0  # the last place that leaves out the last step is 6


def test_a_random_subset_is_new_each_time_and_never_the_last_step() -> None:
    window = windows.random_subset(fraction=0.5)
    seen = {tuple(chosen(window, 6, seed=seed)) for seed in range(200)}
    assert len(seen) == 10 and all(len(steps) == 3 and 5 not in steps for steps in seen)
    assert chosen(windows.random_subset(fraction=1.0), 4) == [0, 1, 2] and len(chosen(windows.random_subset(fraction=0.01), 4)) == 1


def test_a_growing_window_grows_from_the_data() -> None:
    window = windows.growing_window(smallest=2, largest=5, every=3, by=2)
    assert [chosen(window, 6, step=step) for step in (0, 2, 3, 6, 99)] == [[4, 5], [4, 5], [2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]


def test_bad_input_is_one_line() -> None:
    for make, message in (
        (lambda: windows.all_but_last(count=-1), r"all_but_last\.count: got -1"),
        (lambda: chosen(windows.all_but_last(count=4), 4), r"all_but_last\.count: got 4, which leaves none of 4 steps"),
        (lambda: windows.first_fraction(fraction=0.0), r"first_fraction\.fraction: got 0\.0"),
        (lambda: windows.random_window(size=0), r"random_window\.size: got 0"),
        (lambda: windows.random_window(within=(0.5, 0.2)), r"random_window\.within: got \(0\.5, 0\.2\)"),
        (lambda: chosen(windows.random_window(size=3), 4), r"random_window\.size: got 3, takes at most 2 within=\(0\.0, 0\.5\) of 4 steps"),
        (lambda: windows.sliding_window(every=0), r"sliding_window: got every=0"),
        (lambda: windows.sliding_window(pace="slow"), r"sliding_window\.pace: got 'slow', takes 'steady', 'decay' or 'exp_decay'"),  # type: ignore[arg-type]
        (lambda: chosen(windows.sliding_window(size=4), 4), r"sliding_window\.size: got 4, takes at most 3"),
        (lambda: windows.random_subset(fraction=1.5), r"random_subset\.fraction: got 1\.5"),
        (lambda: chosen(windows.random_subset(), 1), r"random_subset: got a trajectory of 1 step"),
        (lambda: windows.growing_window(smallest=5, largest=4), r"growing_window: got smallest=5, largest=4"),
        (lambda: chosen(windows.growing_window(), 10), r"growing_window\.largest: got 20, takes at most the 10 steps"),
    ):
        with pytest.raises(UserError, match=message):
            make()
