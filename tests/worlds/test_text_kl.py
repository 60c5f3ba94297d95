"""A language model whose every answer can be counted out: best of n beside the optimum, and a proxy that is followed too far."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.evaluation import best_of_n_kl, overoptimisation_law
from mmalign.policies.settings import TextMemory
from mmalign.records import Pair
from mmalign.worlds.text.optimum import Optimum, text_optimum
from tests.worlds.test_text import tiny, vowels

PROMPT, TOKENS = "a b", 3


def gold(outputs: list[str], prompts: list[str]) -> torch.Tensor:
    """What the proxy ``vowels`` stands for: one of them is good, two are too many, and nothing else is as bad as none."""
    return torch.tensor([{0: -1.0, 1: 1.0, 2: -0.3, 3: -1.0}[int(count)] for count in vowels(outputs, prompts)], dtype=torch.float64)


@cache
def counted(beta: float = 1.0) -> Optimum:
    return text_optimum(*tiny(), PROMPT, vowels, tokens=TOKENS, beta=beta)


def best_of(probabilities: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
    """``[N]``, the law of the best of ``count`` draws, one of equal scores as likely as another: exact, level by level.

    All draws are at or below a level with probability F^n, so the best is at it with ``F(level)^n - F(below)^n``, shared as p is there.
    """
    law, below = torch.zeros_like(probabilities), torch.tensor(0.0, dtype=torch.float64)
    for level in scores.unique():  # sorted
        here = scores == level
        upto = below + probabilities[here].sum()
        law[here] = (upto**count - below**count) * probabilities[here] / probabilities[here].sum()
        below = upto
    return law


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())


@pytest.mark.parametrize("count", [1, 2, 4, 16, 64])
def test_best_of_n_moves_by_no_more_than_its_bound(count: int) -> None:
    """KL(BoN || p) <= log N - (N - 1) / N, below it where answers tie, and nearly it where none does."""
    world = counted()
    scores = vowels(world.texts, [])
    tied = kl(best_of(world.base, scores, count), world.base)
    assert tied <= best_of_n_kl(count) + 1e-12 and (count == 1 or tied < 0.95 * best_of_n_kl(count))
    distinct = scores + 1e-3 * torch.rand(len(scores), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = kl(best_of(world.base, distinct, count), world.base)
    assert tied <= apart + 1e-12 and apart <= best_of_n_kl(count) + 1e-12
    largest = float(world.base.max())
    assert apart >= best_of_n_kl(count) - 2 * count * largest  # answers that are drawn twice are what the bound gives away


def test_best_of_n_is_near_the_optimum_at_its_kl_and_never_above_it() -> None:
    """The tilted law has the highest reward of all at its KL; best of n gains nine tenths of that or more."""
    world = counted()
    scores, start = vowels(world.texts, []), float(world.base @ vowels(world.texts, []))
    for count in (2, 4, 8, 16):
        best = best_of(world.base, scores, count)
        nats, reward = kl(best, world.base), float(best @ scores)
        low, high = 1e-3, 1e3
        for _ in range(200):
            beta = math.sqrt(low * high)
            tilted = (world.base.log() + scores / beta).softmax(0)
            low, high = (beta, high) if kl(tilted, world.base) > nats else (low, beta)
        optimum = float(tilted @ scores)
        assert kl(tilted, world.base) == pytest.approx(nats, rel=1e-6)
        assert optimum - 1e-9 >= reward >= start + 0.9 * (optimum - start)
    assert counted(0.5).reward == pytest.approx(float(counted(0.5).best @ scores)) and counted(0.5).kl > counted(2.0).kl


def test_samples_of_best_of_n_follow_the_law_that_was_counted_out() -> None:
    world, count = counted(), 4
    scores, law = vowels(world.texts, []), best_of(world.base, vowels(world.texts, []), count)
    draws = torch.multinomial(world.base, 20_000 * count, replacement=True, generator=torch.Generator().manual_seed(0)).view(-1, count)
    chosen = draws.gather(1, scores[draws].argmax(1, keepdim=True))  # the first of equals, which are in no order
    share = torch.bincount(chosen.flatten(), minlength=len(law)).double() / len(draws)
    assert float((share - law).abs().max()) < 5 * math.sqrt(float(law.max()) / len(draws))


def trained(method: str, folder: Any) -> list[tuple[float, float, float]]:
    """(KL, proxy, gold) at every evaluation of a run on the proxy, each of them counted out: expectations, not samples."""
    model, tokenizer = tiny()
    policy = mm.policies.transformers(model, tokenizer, max_completion=TOKENS, truncate="right", memory=TextMemory(rows_at_once=512))
    start, points = counted(), []
    order = {text: number for number, text in enumerate(start.texts)}

    def exact(outputs: list[str], prompts: list[str]) -> dict[str, float]:
        now = text_optimum(model, tokenizer, PROMPT, vowels, tokens=TOKENS, beta=1e9)
        assert [order[text] for text in now.texts] == list(range(len(order)))
        points.append((kl(now.base, start.base), float(now.base @ vowels(now.texts, [])), float(now.base @ gold(now.texts, []))))
        return {"exact_kl": points[-1][0]}

    common: dict[str, Any] = {
        "evaluation": {"every": 2, "samples": 256, "prompts": [PROMPT], "metrics": {"exact": exact}, "judges": {"gold": gold}},
        "run": {"name": method, "folder": str(folder), "trackers": (), "checkpoint_every": 1000},
    }
    if method == "dr_grpo":
        run = mm.online(
            policy, [PROMPT], {"proxy": vowels}, mm.methods.dr_grpo(clip=0.5, beta=0.0, length=1), steps=24,
            batch={"prompts": 1, "group": 64}, optimizer=mm.adamw(rate=0.01), **common,
        )  # fmt: skip
    else:
        picks = torch.multinomial(start.base, 2048, replacement=True, generator=torch.Generator().manual_seed(1)).view(-1, 2)
        texts = [sorted((start.texts[a], start.texts[b]), key=lambda text: -float(vowels([text], [])[0])) for a, b in picks.tolist()]
        pairs = [Pair(PROMPT, better, worse, 1.0, f"p{number}") for number, (better, worse) in enumerate(texts)
                 if vowels([better], []) > vowels([worse], []) and worse]  # fmt: skip
        made = {"dpo": lambda: mm.methods.dpo(beta=0.05), "ipo": lambda: mm.methods.ipo(beta=0.02)}[method]()
        run = mm.offline(policy, pairs, made, steps=14, batch={"records": 128}, optimizer=mm.adamw(rate=0.01), **common)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for row, (nats, *_) in zip([row for row in rows if row["phase"] == "eval"], points, strict=True):
        assert row["exact_kl"] == nats and abs(row["kl"] - nats) <= 5 * row["kl_se"] + 1e-6  # samples tell the KL that was counted out
    return points


@pytest.mark.parametrize("method", ["dr_grpo", "dpo", "ipo"])
def test_gold_rises_and_falls_along_the_kl_of_what_follows_a_proxy(method: str, tmp_path: Any) -> None:
    points = trained(method, tmp_path)
    nats, proxy, judged = (list(column) for column in zip(*points, strict=True))
    peak = max(range(len(judged)), key=judged.__getitem__)
    assert 0 < peak < len(points) - 1 and nats[peak] < nats[-1]
    assert judged[peak] > judged[0] + 0.05 and judged[-1] < judged[peak] - 0.05  # up, and down again
    assert proxy[-1] > proxy[peak] > proxy[0]  # while what it is trained on goes on rising
    law = overoptimisation_law(nats, [value - judged[0] for value in judged], list(range(len(nats))))
    assert law.beta.low > 0 and law.turns and law.explained > 0.7
    assert 0 < law.peak.value < 1.5  # where the mean over all answers that are at its KL turns, and not at the end of the run
