"""Pairs judged again: by an oracle of the uncertainty, and what becomes of pairs that are turned, doubtful, or without a score."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.commands.rejudge_pairs import pair_uncertainty
from mmalign.types import UserError

ROWS = [{"prompt": f"q{n}", "chosen": f"{n} a", "rejected": f"{n} b", "id": str(n)} for n in range(400)]


def scores(**values: tuple[float, ...]) -> dict[str, Any]:
    """Rewards that say a number of the first answer of a pair by its number modulo their length, and 0 of the other one."""

    def reward(mine: tuple[float, ...]) -> Any:
        return lambda outputs, prompts, **_: torch.tensor(
            [mine[int(text.split()[0]) % len(mine)] * text.endswith("a") for text in outputs], dtype=torch.float64
        )

    return {name: reward(mine) for name, mine in values.items()}


def rejudged(folder: Path, rewards: Any, **settings: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    path, out = folder / "pairs.jsonl", folder / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    out.unlink(missing_ok=True)
    counts = mm.commands.rejudge_pairs(str(path), rewards, out=str(out), **settings)
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_uncertainty_is_what_the_voices_know_of_each_other() -> None:
    rng = torch.Generator().manual_seed(0)
    chances = torch.rand(5, 7, generator=rng, dtype=torch.float64)
    for place, column in enumerate(chances.T.tolist()):  # mutual information, term by term
        mean = sum(column) / 5
        wanted = sum(share * math.log2(share / whole) / 5 for p in column for share, whole in ((p, mean), (1 - p, 1 - mean)))
        assert abs(float(pair_uncertainty(chances)[place]) - wanted) < 1e-12
    assert pair_uncertainty(torch.tensor([[1.0], [1.0]]).double()).item() == 0.0


def test_pairs_are_turned_round_and_say_by_how_much(tmp_path: Path) -> None:
    counts, lines = rejudged(tmp_path, scores(a=(2.0, -1.0), b=(1.0, -1.0)), order="turn")
    assert counts == {"pairs": 400, "turned": 200, "left_out": 0, "missing": 0, "uncertainty": counts["uncertainty"]}
    assert (lines[0]["chosen"], lines[0]["score_chosen"], lines[0]["score_rejected"]) == ("0 a", 3.0, 0.0)
    assert (lines[1]["chosen"], lines[1]["score_chosen"], lines[1]["score_rejected"], lines[1]["id"]) == ("1 b", 0.0, -2.0, "1")
    kept = rejudged(tmp_path, scores(a=(2.0, -1.0), b=(1.0, -1.0)))[1]
    assert kept[1]["chosen"] == "1 a" and kept[1]["score_chosen"] == -2.0


def test_doubtful_pairs_are_drawn_less_often_or_not_at_all(tmp_path: Path) -> None:
    voices = scores(a=(9.0, 4.0), b=(9.0, -4.0))  # of every second pair they disagree
    p = torch.sigmoid(torch.tensor([[2.0], [-2.0]]).double())
    doubt = float(pair_uncertainty(p))
    counts, lines = rejudged(tmp_path, voices, scale=2.0, draw=True)
    unsure = [line for line in lines if int(line["id"]) % 2]
    assert counts["pairs"] - len(unsure) == 200 and abs(unsure[0]["uncertainty"] - doubt) < 1e-12
    assert abs(len(unsure) / 200 - (1 - doubt)) < 5 * (doubt * (1 - doubt) / 200) ** 0.5
    assert abs(counts["uncertainty"] - doubt / 2) < 1e-9 and lines == rejudged(tmp_path, voices, scale=2.0, draw=True)[1]
    assert rejudged(tmp_path, voices, scale=2.0, most_uncertainty=0.1)[0]["pairs"] == 200
    told = rejudged(tmp_path, voices, scale=2.0, least_uncertainty=0.1)[1]  # a subset by information
    assert len(told) == 200 and all(int(line["id"]) % 2 for line in told)
    gaps = rejudged(tmp_path, scores(a=(1.0, math.nan)))[0]
    assert (gaps["pairs"], gaps["missing"]) == (200, 200)
    for rewards, line in (({}, r"rewards: got none"), (scores(a=(math.nan,)), r"rejudge_pairs: none of 400 pairs is left \(400 without")):
        with pytest.raises(UserError, match=line):
            rejudged(tmp_path, rewards)
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 1: has no rejected; takes an object with prompt, chosen, rejected"):
        (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
        mm.commands.rejudge_pairs(str(tmp_path / "pairs.jsonl"), scores(a=(1.0,)), out=str(tmp_path / "new.jsonl"))
