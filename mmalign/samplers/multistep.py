"""Deterministic steps of second order, which take a step's estimate on from the one before it.

A step of ``kernels.ode`` holds the clean estimate x0 still while the level goes from t to t'. DPM-Solver++(2M) lets it move on as it
moved in the step before, a line in ``lambda = ln(a / b)``; the rest is the same step::

    D = x0 + h / (2 h_before) (x0 - x0_before),   h = lambda' - lambda,   x' = (b' / b) x + (a' - a b' / b) D

Source: DPM-Solver++, https://arxiv.org/abs/2211.01095, algorithm 2. No further pass of the denoiser is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.types import Level, Prediction


class Estimate(NamedTuple):
    """What was said one step before: the clean estimate ``[B, ...]``, its level, and the rows ``[B]`` bool that go on by the ODE.

    A row whose step had noise is on another path of the ODE than its estimate, and begins again.
    """

    clean: Tensor
    level: Level
    rows: Tensor


def carried_on(prediction: Prediction, x: Tensor, t: Level, t_next: Level, before: Estimate | None) -> Prediction:
    """What ``kernels.ode`` makes the step of second order of, from x; levels are 0-d.

    The prediction itself where nothing was said before, from a level of pure noise (lambda is infinite) and into one of clean data.

    Examples:
        >>> at = [Level(torch.tensor(a), torch.tensor(1.0)) for a in (1.0, 2.0, 4.0)]  # lambda is 0, ln 2, ln 4: steps of one length
        >>> before = Estimate(torch.tensor([1.0, 1.0]), at[0], torch.tensor([True, False]))
        >>> now = Prediction(torch.tensor([3.0, 3.0]), torch.tensor([0.0, 0.0]))
        >>> carried_on(now, torch.tensor([6.0, 6.0]), at[1], at[2], before)  # 3 + (3 - 1) / 2, and the noise that is left: 6 - 2 * 4
        Prediction(clean=tensor([4., 3.]), noise=tensor([-2., 0.]))
    """
    if before is None or not bool(before.rows.any()):
        return prediction
    length, length_before = _log_ratio(t_next) - _log_ratio(t), _log_ratio(t) - _log_ratio(before.level)
    share = length / (2 * length_before)
    if not bool(torch.isfinite(length) & torch.isfinite(length_before)):
        return prediction
    rows = before.rows.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
    clean = prediction.clean + share.to(prediction.clean) * (prediction.clean - before.clean)
    noise = (x.to(clean) - t.signal.to(clean) * clean) / t.noise.to(clean)
    return Prediction(torch.where(rows, clean, prediction.clean), torch.where(rows, noise, prediction.noise))


def _log_ratio(level: Level) -> Tensor:
    return level.signal.double().log() - level.noise.double().log()
