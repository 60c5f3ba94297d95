"""Singular values of an adapter, moved by a reward; all else of it stands still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.commands.evolve import _factored, evolve
from mmalign.types import UserError


def policy(*, still: bool = False) -> Any:
    made = mm.policies.transformers(mm.worlds.text(), max_completion=8, lora={"rank": 3, "alpha": 6})
    with torch.no_grad():
        for number, (name, p) in enumerate(made.sets.trained.items()):
            if not (still and "lora_B" in name):
                p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    return made


def test_a_matrix_is_what_its_factors_make_of_it() -> None:
    matrix = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    whole, half = _factored("a", matrix, 1.0), _factored("a", matrix, 0.5)
    assert (whole.moved, half.moved, _factored("a", matrix, 0.01).moved) == (3, 2, 1)
    assert torch.allclose(whole.matrix([1.0, 1.0, 1.0]).float(), matrix, atol=1e-6)
    moved = torch.linalg.svdvals(half.matrix([2.0, 0.5]))
    wanted = torch.linalg.svdvals(matrix.double()) * torch.tensor([2.0, 0.5, 1.0]).double()
    assert torch.allclose(moved, wanted.sort(descending=True).values, atol=1e-6)


def test_only_singular_values_move_and_the_best_are_written(tmp_path: Path) -> None:
    start, given = policy(), policy()

    def long(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        return torch.tensor([float(len(output)) for output in outputs]).double()

    search = mm.Search(prompts=["the function", "this class"], rewards={"long": long}, samples=4, evaluations=40, spread=0.5)
    out = evolve(given, search, out=tmp_path / "evolved")
    lines = (out / "search.jsonl").read_text().splitlines()
    assert len(lines) == 41 and not (tmp_path / "evolved.search").exists()
    changed = 0
    for name, p in given.sets.trained.items():
        one, two = (torch.linalg.svd(value.detach().double(), full_matrices=False) for value in (start.sets.trained[name], p))
        spans = [(u @ u.T, v.T @ v) for u, _, v in (one, two)]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*spans, strict=True)), name  # the same rows and columns
        changed += not torch.allclose(one[1], two[1], rtol=1e-3)
    assert changed == len(given.sets.trained)
    from peft import PeftModel

    again = PeftModel.from_pretrained(mm.worlds.text()[0], str(out))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, given.model(input_ids=ids).logits, atol=1e-4)
    card = (out / "README.md").read_text()
    assert "PeftModel.from_pretrained(model, folder)" in card and "singular values of an adapter" in card
    before, after = (float(cell) for cell in next(line for line in card.splitlines() if line.startswith("| reward")).split("|")[2:4])
    assert after > before


def test_what_has_no_singular_values_to_move_is_said(tmp_path: Path) -> None:
    search = mm.Search(prompts=["x"], rewards={"plain": mm.worlds.text_plain()})
    with pytest.raises(UserError, match=r"policy\.lora: missing; takes \{from: RUN_OR_ADAPTER\}"):
        evolve(mm.policies.transformers(mm.worlds.text(), max_completion=8), search, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"policy\.lora: .*lora_B.* is 0, so there is nothing to move"):
        evolve(policy(still=True), search, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"search\.prompts: got none"):
        evolve(policy(), mm.Search(prompts=[], rewards={"plain": mm.worlds.text_plain()}), out=tmp_path / "out")
