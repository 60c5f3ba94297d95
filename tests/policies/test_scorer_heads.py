"""Heads of reward models: their formulas in straight lines, what they learn that a linear head cannot, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mmalign as mm
from mmalign.policies.scorers.heads.gated import decorrelating
from mmalign.types import Feedback, Steps, UserError

NAMES = ["anna", "ben", "cleo"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_ideal_point_is_a_mixture_of_prototypes() -> None:
    head: Any = mm.heads.ideal_points(annotators=NAMES, prototypes=3, width=4).make(5, ["a", "b"]).double()
    features, who = random(4, 5).double(), ["cleo", "anna", "", None]
    with torch.no_grad():
        project, prototypes, weights = head.project.tolist(), head.prototypes.tolist(), head.weights.tolist()
        got = head(features, {"annotator": who})
    shares = [[math.exp(one) / sum(map(math.exp, row)) for one in row] for row in weights]
    mean = [sum(column) / 3 for column in zip(*shares, strict=True)]
    for row, name in enumerate(who):
        own = shares[NAMES.index(name)] if name else mean
        for score in range(2):
            total = 0.0
            for place in range(4):
                point = sum(a * h for a, h in zip(project[score * 4 + place], features[row].tolist(), strict=True))
                total -= (point - sum(own[k] * prototypes[score][k][place] for k in range(3))) ** 2
            assert got[row, score].item() == pytest.approx(total, rel=1e-12)


def test_a_latent_s_numbers_are_its_score_its_divergence_and_its_loads() -> None:
    head: Any = mm.heads.latent_user(annotators=NAMES).make(5, ["score", "kl", "a", "b"]).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(random(*parameter.shape, seed=3))
        features = random(2, 5).double()
        known, nobody = head(features, {"annotator": ["ben", ""]})
    mean, std, loads = head.mean[1].tolist(), head.log_std[1].exp().tolist(), (head.loads.detach() @ features.T).T
    wanted = (head.shared[0] @ features[0]).item() + sum(m * one for m, one in zip(mean, loads[0].tolist(), strict=True))
    divergence = sum((m**2 + s**2 - 1) / 2 - math.log(s) for m, s in zip(mean, std, strict=True))
    assert known.tolist() == pytest.approx([wanted, divergence, std[0] * loads[0, 0].item(), std[1] * loads[0, 1].item()])
    assert nobody.tolist() == pytest.approx([(head.shared[0] @ features[1]).item(), 0.0, *loads[1].tolist()])
    with pytest.raises(UserError, match="takes three or more"):
        mm.heads.latent_user(annotators=NAMES).make(5, ["score", "kl"])


def test_two_groups_of_opposite_tastes_are_both_met() -> None:
    """60 pairs of each of 6 people; three like what three dislike, so that one score for all is right of one half."""
    taste, rng = random(8, seed=1), torch.Generator().manual_seed(2)
    people = [f"{number}" for number in range(6)]
    who = [name for name in people for _ in range(60)]
    sign = torch.tensor([1.0 if int(name) % 2 else -1.0 for name in who])

    def outputs() -> Tensor:
        return torch.randn(len(who), 2, 8, generator=rng)

    def better(rows: Tensor) -> Tensor:
        return sign * ((rows[:, 0] - rows[:, 1]) @ taste) > 0

    def accuracy(head: Any, method: Any = mm.methods.bradley_terry(), scores: tuple[str, ...] = ("score",)) -> list[float]:  # noqa: B008
        seen, unseen = outputs(), outputs()
        strength, columns = better(seen).double(), {"annotator": [name for name in who for _ in range(2)]}
        pairs, count = torch.arange(2 * len(who)).view(-1, 2), 2 * len(who)
        feedback = Feedback(torch.zeros(count).double(), torch.arange(count) // 2, pairs=pairs, strength=strength)
        mask, module = torch.ones(count, len(scores)).bool(), head.make(8, list(scores))
        optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
        for _ in range(150):
            steps = Steps(module(seen.flatten(0, 1), columns).double(), mask, kind="score")
            optimizer.zero_grad()
            (method.weigh(mask) * method.loss(steps, method.signal(feedback)).values).sum().backward()
            optimizer.step()
        with torch.no_grad():
            scores = module(unseen.flatten(0, 1), columns)[:, 0].view(-1, 2)
        right = (scores[:, 0] > scores[:, 1]) == better(unseen)
        return [right[sign == one].double().mean().item() for one in (1, -1)]

    assert min(accuracy(mm.heads.ideal_points(annotators=people))) > 0.9
    latent = mm.heads.latent_user(annotators=people)
    assert min(accuracy(latent, mm.methods.variational_preference(kl=1 / 60), ("score", "kl", "z1", "z2"))) > 0.9
    both = accuracy(mm.heads.linear())
    assert sum(both) / 2 == pytest.approx(0.5, abs=0.1) and min(both) < 0.6


def exported(folder: Path, rows: Tensor, names: list[str]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    save_file({"score.weight": rows, "model.embed.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    return str(folder)


def test_a_gate_weighs_attributes_less_their_verbosity(tmp_path: Path) -> None:
    rows, features = random(3, 5), random(4, 5, seed=1)
    folder = exported(tmp_path / "out", rows, ["kind", "true", "long"])
    head = mm.heads.gated(attributes=folder, verbosity="long", penalties={"true": 0.5}, temperature=2.0, width=7).make(5, ["score"])
    assert {name for name, _ in head.named_parameters()} == {"hidden", "gate"}
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(random(*parameter.shape, seed=3))
        got, (hidden, gate) = head(features, {}), (head.hidden.tolist(), head.gate.tolist())
    for row, h in enumerate(features.tolist()):
        inner = [max(0.0, sum(a * b for a, b in zip(one, h, strict=True))) for one in hidden]
        logits = [math.exp(sum(a * b for a, b in zip(one, inner, strict=True)) / 2.0) for one in gate]
        kind, true, long = ((rows[place] * features[row]).sum().item() for place in range(3))
        parts = [kind, true - 0.5 * long, long]
        assert got[row, 0].item() == pytest.approx(sum(a * b for a, b in zip(logits, parts, strict=True)) / sum(logits), rel=1e-4)


def test_decorrelated_attributes_say_nothing_of_length() -> None:
    long = random(50)
    ratings = torch.stack([2 * long + random(50, seed=1), random(50, seed=2)], 1)
    left = ratings - decorrelating(ratings, long) * long[:, None]
    assert ((left - left.mean(0)) * (long - long.mean())[:, None]).mean(0).abs().max() < 1e-5


def test_what_heads_cannot_be_made_of_is_one_line(tmp_path: Path) -> None:
    for annotators, why in ((["a", "a"], "2 names, 1 of them different"), ([], "got 0 names"), ("nowhere.txt", "no such file")):
        with pytest.raises(UserError, match=rf"policy\.head\.annotators: .*{why}"):
            mm.heads.ideal_points(annotators=annotators)
    (tmp_path / "people.txt").write_text("anna\nben\n")
    head = mm.heads.ideal_points(annotators=str(tmp_path / "people.txt")).make(3, ["score"])
    with pytest.raises(UserError, match="does not list 'dora'; takes anna, ben, or no name"):
        head(torch.zeros(1, 3), {"annotator": ["dora"]})
    folder = exported(tmp_path / "out", random(2, 5), ["kind", "long"])
    for width, scores, more, why in (
        (4, ["score"], {}, "reads 5 features, and this model has 4"),
        (5, ["a", "b"], {}, "takes one name"),
        (5, ["score"], {"verbosity": "short"}, "no attribute 'short' in .*; takes kind, long"),
    ):
        with pytest.raises(UserError, match=why):
            mm.heads.gated(attributes=folder, **more).make(width, scores)
    with pytest.raises(UserError, match=r"verbosity: missing"):
        mm.heads.gated(attributes=folder, penalties={"kind": 1.0})
    (tmp_path / "out" / "model.safetensors").unlink()
    for place, why in ((folder, "no score.weight"), (str(tmp_path), "no config.json")):
        with pytest.raises(UserError, match=why):
            mm.heads.gated(attributes=place).make(5, ["score"])
