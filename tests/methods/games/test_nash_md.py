from __future__ import annotations

import math
from dataclasses import replace

import torch

from mmalign.methods.games.nash_md import nash_md
from mmalign.needs import MASK, OLD, refs
from mmalign.types import Feedback


def feedback_of(ref: list[float]) -> Feedback:
    """Three rows of one step, sampled alike; row 0 beats row 1 with .9 and row 2 with .3."""
    wins = torch.tensor([[math.nan, 0.9, 0.3], [0.1, math.nan, 0.5], [0.7, 0.5, math.nan]]).double()
    tables = {
        MASK: torch.ones(3, 1, dtype=torch.bool),
        OLD: torch.zeros(3, 1).double(),
        refs("ref"): torch.tensor(ref).double()[:, None],
    }
    return Feedback(torch.zeros(3).double(), torch.zeros(3, dtype=torch.int64), wins=wins, tables=tables)


def test_against_itself_the_others_count_alike() -> None:
    signal = nash_md(mixture=0.5, tau=0.0, opponents="weighted").signal(feedback_of([0.0, 0.0, 0.0]))
    torch.testing.assert_close(signal[:, 0], torch.tensor([0.1, -0.2, 0.1]).double())


def test_rows_that_the_reference_likes_count_more() -> None:
    signal = nash_md(mixture=1.0, tau=0.0, opponents="weighted").signal(feedback_of([0.0, math.log(3.0), 0.0]))
    torch.testing.assert_close(signal[0, 0], torch.tensor((3 * 0.9 + 0.3) / 4 - 0.5).double())


def test_the_mixture_is_the_one_that_is_meant() -> None:
    """Opponents drawn from pi and weighted, over many draws, are ones of pi^(1 - m) ref^m / Z."""
    rng = torch.Generator().manual_seed(0)
    pi, ref = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.3, 0.6]).double()
    beats = torch.tensor([0.2, 0.9, 0.6]).double()  # how often row 0 beats an opponent with each word
    words = torch.multinomial(pi, 4000, replacement=True, generator=rng)
    wins = torch.full((4001, 4001), math.nan).double()
    wins[0, 1:] = beats[words]
    words = torch.cat([torch.zeros(1, dtype=torch.int64), words])
    tables = {MASK: torch.ones(4001, 1, dtype=torch.bool), OLD: pi.log()[words][:, None], refs("ref"): ref.log()[words][:, None]}
    signal = nash_md(mixture=0.4, tau=0.0, opponents="weighted").signal(
        Feedback(torch.zeros(4001).double(), torch.zeros(4001, dtype=torch.int64), wins=wins, tables=tables)
    )
    mixed = pi**0.6 * ref**0.4
    torch.testing.assert_close(signal[0, 0], (mixed * beats).sum() / mixed.sum() - 0.5, atol=0.02, rtol=0)


def test_drawn_opponents_count_alike_and_are_never_trained() -> None:
    drawn = {"mixture": torch.tensor([False, True, True])}
    method, feedback = nash_md(tau=0.0), replace(feedback_of([0.0, 5.0, -5.0]), drawn=drawn)
    torch.testing.assert_close(method.signal(feedback)[:, 0], torch.tensor([0.1, 0.0, 0.0]).double())
    assert method.keep is not None and method.keep(feedback).tolist() == [True, False, False]
    assert [(behavior.name, behavior.shares) for behavior in nash_md(mixture=0.25).behaviors] == [
        ("mixture", {"current": 0.75, "ref": 0.25})
    ]
    assert nash_md(mixture=0.0).behaviors[0].shares == {"current": 1.0} and not nash_md(opponents="weighted").behaviors
