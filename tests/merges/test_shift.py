"""Rows moved along a probe: the probe, the rows, and the model that is written, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.commands.shift import _regressed, fitted_probe, shift
from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.language.scoring.last_states import last_states, mean_states
from mmalign.records import Pair, Thumb
from mmalign.types import UserError

PLAIN = [
    Pair(f"returns the {word}", "value of the object .", "deprecated encoding .", id=word)
    for word in ("name", "value", "list", "number", "string", "type")
]


def policy(**keywords: Any) -> Any:
    return mm.policies.transformers(mm.worlds.text(), max_completion=8, **keywords)


def test_a_probe_is_the_regression_on_states_and_finds_its_own_sides() -> None:
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(80, 5, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.2, 1.0, 1.0])
    labels = (table[:, 1] / 5 - table[:, 2] / 0.2 + 0.5 * torch.randn(80, generator=rng, dtype=torch.float64) > 0).double()
    found, scale = _regressed(table, labels), table.std(0)
    x = (table - table.mean(0)) / scale
    w, b = (found * scale).requires_grad_(), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    best = torch.optim.LBFGS([b], lr=1, max_iter=50)

    def loss() -> torch.Tensor:
        best.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, labels) + 0.005 * w.square().sum()
        value.backward()
        return value

    best.step(loss)
    w.grad = None
    loss()
    assert float(w.grad.abs().max()) < 1e-6  # where the penalised likelihood is at its best
    made = policy()
    rows = made.encode(["returns the name"] * 2, ["value .", "deprecated ."], torch.arange(2), torch.Generator())
    held, states = sequences(rows.held, torch.arange(2)), []
    for length in (1, 2, 3):  # word by word: the state behind the last token of a row that ends there
        states.append(last_states(made.scorer, replace(held, lengths=torch.full((2,), length))).detach().double())
    torch.testing.assert_close(mean_states(made.scorer, held), torch.stack(states).mean(0), rtol=1e-4, atol=1e-5)
    assert fitted_probe(made, PLAIN, 6).right == 1.0


def test_only_the_rows_that_go_with_the_probe_are_moved_and_the_folder_is_the_model(tmp_path: Path) -> None:
    given, start = policy(), policy()
    out = shift(given, PLAIN, out=tmp_path / "moved", strength=0.75, rows=0.1, prompt="returns the")
    from transformers import AutoModelForCausalLM

    made = dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())
    probe, changed = fitted_probe(start, PLAIN, 256).direction, 0
    for name, before in start.model.named_parameters():
        moved = (made[name].double() - before.double()).norm(dim=-1) > 0
        if not name.endswith("gate_proj.weight"):
            assert not bool(moved.any()), name
            continue
        cosines = torch.nn.functional.cosine_similarity(before.double(), probe[None], dim=1).abs()
        assert set(moved.nonzero()[:, 0].tolist()) == set(cosines.topk(int(0.1 * len(before))).indices.tolist())
        row = int(cosines.argmax())
        wanted = before[row].double() + 0.75 * before[row].double().norm() * probe
        torch.testing.assert_close(made[name][row].double(), wanted, rtol=1e-5, atol=1e-6)
        changed += 1
    assert changed == 2 and "of the rows of 2 layers `gate_proj` moved along a probe by 0.75, 0.75" in (out / "README.md").read_text()


def test_what_cannot_be_moved_is_said(tmp_path: Path) -> None:
    same = [Pair("returns the", "value .", "no .", id="a"), Pair("returns the", "no .", "value .", id="b")]
    for call, line in (
        (lambda: shift(policy(lora={"rank": 2}), PLAIN, out=tmp_path / "a"), r"policy\.lora: got an adapter"),
        (
            lambda: shift(policy(), PLAIN, out=tmp_path / "a", layers="mlp"),
            r"layers: got 'mlp', takes the end of a linear layer's name: .*gate_proj",
        ),
        (lambda: shift(policy(), PLAIN, out=tmp_path / "a", layers="down_proj"), r"layers: .*down_proj\.weight reads \d+ numbers"),
        (lambda: shift(policy(), [Thumb("q", "a", 1.0, "t")], out=tmp_path / "a"), r"records: got a Thumb, takes pairs of texts"),
        (lambda: shift(policy(), same, out=tmp_path / "a"), r"records: good and bad answers have the same states"),
    ):
        with pytest.raises(UserError, match=line):
            call()
    assert not (tmp_path / "a").exists()
