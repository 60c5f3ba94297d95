"""Reward models that are told by comparisons whose scores are asked for: an encoder of a set, and people whom nobody has trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.records import Pair, Thumb
from mmalign.types import UserError

NAMES = ["score", "kl", "z"]


def of_number(place: int) -> Any:
    """A reward that reads one of the numbers that an answer is."""

    def reward(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        return torch.tensor([float(output.split()[place]) for output in outputs])

    return reward


def pairs_of(name: str, likes: float, count: int, rng: torch.Generator) -> list[Pair]:
    """Answers of two numbers: all like the second, some like the first twice as much and others dislike it so."""
    made = []
    for number in range(count):
        both = torch.randn(2, 2, generator=rng)
        answers = [" ".join(f"{value:.3f}" for value in row) for row in both.tolist()]
        worth = (2 * likes * both[:, 0] + both[:, 1]).tolist()
        first, second = answers if worth[0] > worth[1] else answers[::-1]
        made.append(Pair("p", first, second, id=f"{name} {number}", annotator=name))
    return made


def reader(records: Any, most: int = 4) -> Any:
    of = mm.policies.named_features(rewards={"first": of_number(0), "second": of_number(1)})
    return mm.policies.with_comparisons(of, records=records, most=most)


def test_what_stands_beside_a_row_is_its_annotators_other_comparisons() -> None:
    own = [Pair("p", "1 0", "0 0", annotator="anna"), Pair("p", "0 3", "0 1", 0.25, annotator="anna"), Pair("q", "5 5", "0 0")]
    made: Any = reader(own, most=2)
    rollout = made.read(["p"] * 3, ["1 0", "7 7", "8 8"], torch.tensor([0, 0, 1]), torch.Generator().manual_seed(0))
    rollout.columns = {"annotator": ["anna", "anna", ""]}
    first, second, nobody = made.features(rollout, torch.arange(3)).view(3, 3, 2)
    assert first[:2].tolist() == [[1.0, 0.0], [0.0, -1.0]] and bool(first[2].isnan().all())  # not the one that it stands in
    assert second[0].tolist() == [7.0, 7.0] and sorted(map(tuple, second[1:].tolist())) == [(0.0, -1.0), (1.0, 0.0)]
    assert bool(nobody[1:].isnan().all())


def test_the_encoder_in_straight_lines() -> None:
    head: Any = mm.heads.encoded_user(most=2, width=3).make(6, [*NAMES, "z2"]).double()
    with torch.no_grad():
        for number, parameter in enumerate(head.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    h, d = [0.3, -1.0], [[0.5, 2.0], [-1.0, 0.25]]
    for count in (2, 1, 0):
        rows = torch.tensor([[*h, *(value for one in d[:count] for value in one), *[math.nan] * (2 * (2 - count))]], dtype=torch.float64)
        a, c, b, f, w = (value.tolist() for value in (head.each, head.all, head.out, head.loads, head.shared))
        dot = lambda x, y: sum(p * q for p, q in zip(x, y, strict=True))  # noqa: E731
        said = [sum(math.tanh(dot(one, each)) for each in d[:count]) / max(1, count) for one in a]
        inner = [math.tanh(dot(one, [*said, math.log1p(count)])) for one in c]
        numbers = [dot(one, inner) if count else 0.0 for one in b]
        mean, log_std, loads = numbers[:2], numbers[2:], [dot(one, h) for one in f]
        divergence = sum(m**2 + math.exp(2 * s) - 1 - 2 * s for m, s in zip(mean, log_std, strict=True)) / 2
        wanted = [dot(w[0], h) + dot(mean, loads), divergence, *(math.exp(s) * load for s, load in zip(log_std, loads, strict=True))]
        assert head(rows)[0].tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-15)


def test_somebody_new_is_served_by_a_few_comparisons_without_training(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(3)
    known = [pair for number in range(8) for pair in pairs_of(f"{number}", (-1) ** number, 24, rng)]
    policy = mm.policies.scorer(reader(known), head=mm.heads.encoded_user(most=4, width=8), scores=NAMES)
    held = [pair for name, likes in (("new", 1.0), ("other", -1.0)) for pair in pairs_of(name, likes, 48, rng)]
    mm.offline(
        policy, known, mm.methods.variational_preference(kl=0.02), steps=60, batch={"records": 64}, optimizer=mm.adamw(rate=3e-2),
        evaluation={"records": held[:8], "every": 60}, run={"folder": str(tmp_path), "name": "run", "trackers": ()},
    )  # fmt: skip
    before = {name: value.detach().clone() for name, value in policy.parameters().items()}

    def accuracy(name: str) -> float:
        own = [pair for pair in held if pair.annotator == name]
        scores = [policy.score(["p"] * len(own), [pair[place] for pair in own], {"annotator": [name] * len(own)})[:, 0] for place in (1, 2)]
        return float((scores[0] > scores[1]).double().mean())

    strangers = {name: accuracy(name) for name in ("new", "other")}
    told: Any = policy.reader
    told.learn([pair for name, likes in (("new", 1.0), ("other", -1.0)) for pair in pairs_of(name, likes, 4, rng)])
    assert max(strangers.values()) < 0.8  # nobody knows whether they like the first number
    assert min(accuracy(name) for name in strangers) > 0.85
    assert all(torch.equal(value, before[name]) for name, value in policy.parameters().items())


def test_what_says_nothing_of_anybody_is_one_line() -> None:
    with pytest.raises(UserError, match=r"policy\.of\.records: got a Thumb, takes pairs"):
        reader([Thumb("p", "1 1", 1.0)])
    with pytest.raises(UserError, match=r"got none with a label and an annotator"):
        reader([Pair("p", "1 1", "0 0")])
    with pytest.raises(UserError, match=r"policy\.head: latent_user takes 1, ComparisonsReader reads 5"):
        mm.policies.scorer(reader(pairs_of("a", 1.0, 2, torch.Generator())), head=mm.heads.latent_user(annotators=["a"]), scores=NAMES)
