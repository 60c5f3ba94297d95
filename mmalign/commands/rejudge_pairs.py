"""Pairs of a file judged again, by one reward or by several that may disagree; those that are doubtful are left out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, Positive, Seed
from mmalign.commands._lines import Line, read, refuse_there, written
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, combined, refuse_columns
from mmalign.types import UserError

__all__ = ["rejudge_pairs"]


def rejudge_pairs(  # what a command may be told
    path: str,
    rewards: Mapping[str, Callable[..., Any]],
    *,
    out: str,
    combine: Callable[..., Any] | None = None,
    order: Literal["keep", "turn"] = "keep",
    scale: Positive = 1.0,
    draw: bool = False,
    least_uncertainty: NotNegative = 0.0,
    most_uncertainty: NotNegative | None = None,
    pairs_at_once: Count = 32,
    seed: Seed = 0,
) -> dict[str, float]:
    """Writes the pairs of a file with what rewards say of them, and how sure these are of who is better; returns counts.

    With K voices, which are rewards or the parts of one (``trained`` with ``passes``), and ``p_k = sigmoid((r_k(w) - r_k(l)) / scale)``,
    the uncertainty of a pair is the information that the voices have about each other's verdict, in bits::

        u = H(mean_k p_k) - mean_k H(p_k)

    0 where all say the same, however unsure, and up to 1 where each is sure and half of them are for the other.

    Args:
        path: JSON lines as ``make_pairs`` writes them. rewards: name -> reward. combine: how they become one number, their sum by default.
        out: the file; it appears whole or not at all. Its lines have the new ``score_chosen`` and ``score_rejected``, and ``uncertainty``.
        order: ``keep`` whom the file calls better, or ``turn`` pairs round whose rejected answer has the higher score.
        scale: of a difference of rewards, in their units.
        draw: keep a pair with the probability 1 - u, which in the mean is to weigh it so.
        least_uncertainty, most_uncertainty: keep only pairs with so many bits: those that say most, or those that are sure.
        pairs_at_once: that are judged at once. seed: of the drawing.

    A pair without a score is left out. Counts: ``pairs`` (kept), ``turned`` (among them), ``left_out``, ``missing``, ``uncertainty`` (the
    mean of all that were judged).

    Paper: Self-Evolutionary Large Language Models through Uncertainty-Enhanced Preference Optimization, arXiv 2409.11212 (*recalled*: a
    Bayesian network by dropout passes, pairs sampled by 1 - u, a loss weighted by it). The measure is BALD's, arXiv 1112.5745, eq. 2.

    Of several processes each judges some, and the main one writes. Errors: UserError for a file that is there already or is not, a line
    without texts, and where no pair is left.
    """
    refuse_there(out)
    if not rewards:
        raise UserError("rewards: got none, takes one or more")
    refuse_columns(rewards, (), kind="reward")
    rows, team = read(path, "prompt", "chosen", "rejected"), joined()
    if odd := next(
        (number for number, row in enumerate(rows, 1) if not all(isinstance(row[key], str) for key in ("chosen", "rejected"))), 0
    ):
        raise UserError(f"{path}, pair {odd}: takes texts under chosen and rejected")
    counts = {"pairs": 0, "turned": 0, "left_out": 0, "missing": 0, "uncertainty": 0.0}

    def judged(start: int) -> list[list[float | None]]:
        some = rows[start : start + pairs_at_once]
        answers, prompts = [row[key] for row in some for key in ("chosen", "rejected")], [row["prompt"] for row in some for _ in "ab"]
        scores = ask(rewards, answers, prompts, drop=True)
        group = torch.arange(len(some)).repeat_interleave(2)
        known = torch.stack([combined(scores, group, prompts, combine), *scores.values()]).view(-1, len(some), 2)
        doubt = pair_uncertainty(torch.sigmoid((known[1:, :, 0] - known[1:, :, 1]) / scale))
        table = torch.cat([known[0], doubt.unsqueeze(1)], dim=1)
        return [[None if math.isnan(value) else value for value in line] for line in table.tolist()]

    def lines() -> Iterator[Line]:
        for start, made in in_turn(team, range(0, len(rows), pairs_at_once), judged):
            for place, (better, worse, doubt) in enumerate(made, start):
                if better is None or worse is None or doubt is None:
                    counts["missing"] += 1
                    continue
                counts["uncertainty"] += doubt
                lot = random.Random(f"{seed} {place}").random()
                beyond = math.inf if most_uncertainty is None else most_uncertainty
                if (draw and lot < doubt) or not least_uncertainty <= doubt <= beyond:
                    counts["left_out"] += 1
                    continue
                turned = order == "turn" and worse > better
                counts["pairs"] += 1
                counts["turned"] += turned
                yield _line(rows[place], (worse, better) if turned else (better, worse), doubt, turned)
        if not counts["pairs"]:
            raise UserError(f"rejudge_pairs: none of {len(rows)} pairs is left ({counts['missing']} without a score); takes other rewards")

    with stopping_together(team):
        settings = {"order": order, "scale": scale, "draw": draw, "bits": [least_uncertainty, most_uncertainty], "seed": seed}
        team.agree("rejudge_pairs", {"pairs": hashed(rows), "rewards": sorted(rewards), "pairs_at_once": pairs_at_once, **settings})
        written(Path(out), lines(), team)
    known = len(rows) - counts["missing"]
    return {**counts, "uncertainty": counts["uncertainty"] / known}


def pair_uncertainty(chances: Tensor) -> Tensor:
    """``H(mean_k p_k) - mean_k H(p_k)`` in bits, ``[N]``, of what each of K voices says of each of N pairs.

    chances: ``[K, N]``, the probability that the first is better. NaN where a voice says nothing.

    Examples:
        >>> pair_uncertainty(torch.tensor([[1.0, 0.7, 0.5], [0.0, 0.7, 1.0]]).double()).mul(1e4).round().tolist()
        [10000.0, 0.0, 3113.0]
    """
    return (_entropy(chances.mean(0)) - _entropy(chances).mean(0)).clamp(min=0.0)


def _entropy(p: Tensor) -> Tensor:
    """Bits of a coin."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)


def _line(row: Line, scores: tuple[float, float], doubt: float, turned: bool) -> Line:
    sides = (row["rejected"], row["chosen"]) if turned else (row["chosen"], row["rejected"])
    said = {"chosen": sides[0], "rejected": sides[1], "score_chosen": scores[0], "score_rejected": scores[1]}
    return {**row, **said, "uncertainty": doubt}
