"""How far probabilities of a pair method may be believed: what it says of records that it is not trained on, against what people said."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 10  # of the same width, from one half to 1
HOTTEST = 1e4  # the range in which a temperature is looked for is from 1 / HOTTEST to HOTTEST


def reliability(compared: Tensor, *, known: bool) -> dict[str, float]:
    """Numbers of a reliability diagram (Guo et al. 2017, arXiv 1706.04599, sections 2 and 4.2) of comparisons.

    Of each comparison the row that the method says is ahead is asked for: with which probability it is the better one, p in 0.5..1, and
    whether people said so; nobody ahead is half right. ``ece``: expected calibration error, ``sum_bins n_bin / n |mean p - part that was
    right|``. ``temperature``: of all T the one at which ``sigmoid(gap / T)`` is the likeliest, so 1 is calibrated, and above it differences
    are too large; at the end of its range where the order is always right. ``bins/K/count``, ``predicted``, ``observed`` of the bins that
    hold something.

    compared: ``[M, 2]`` float64, by how much the first of two rows is ahead, and how probably it is the better one. known: whether the
    method says that this is a log-odds, so that p is ``sigmoid(gap)``; of others it is ``sigmoid(gap / T)``, at the temperature found.

    Examples:
        >>> numbers = reliability(torch.tensor([[2.0, 1.0], [2.0, 0.0], [-2.0, 0.0], [2.0, 1.0]]).double(), known=False)
        >>> round(numbers["temperature"], 3), round(numbers["bins/5/predicted"], 3), numbers["bins/5/observed"], numbers["ece"] < 1e-3
        (1.82, 0.75, 0.75, True)
    """
    gap, label = compared.unbind(1)
    temperature = _temperature(gap, label)
    predicted = torch.sigmoid(gap if known or math.isnan(temperature) else gap / temperature)
    right = torch.where(predicted == 0.5, 0.5, torch.where(predicted < 0.5, 1 - label, label))
    predicted = torch.where(predicted < 0.5, 1 - predicted, predicted)
    place = ((predicted - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    numbers, ece = {"temperature": temperature}, 0.0
    for number in range(BINS):
        inside = place == number
        if bool(inside.any()):
            mean, observed = float(predicted[inside].mean()), float(right[inside].mean())
            ece += float(inside.double().mean()) * abs(mean - observed)
            numbers |= {f"bins/{number}/count": float(inside.sum()), f"bins/{number}/predicted": mean, f"bins/{number}/observed": observed}
    return {**numbers, "ece": ece}


def _temperature(gap: Tensor, label: Tensor) -> float:
    """The root of ``sum gap (label - sigmoid(gap / T))``, by bisection of ``ln T``; the likelihood has one maximum in 1 / T.

    NaN where nothing is ahead of anything.
    """
    if not bool(gap.any()):
        return math.nan
    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    for _ in range(60):
        middle = (low + high) / 2
        too_cold = float((gap * (label - torch.sigmoid(gap * math.exp(-middle)))).sum()) < 0
        low, high = (middle, high) if too_cold else (low, middle)
    return math.exp((low + high) / 2)
