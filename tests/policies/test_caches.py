"""Shared prompts: written once for all of their rows, and computed no further than they are read."""

from __future__ import annotations

import pytest
import torch

from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.caches import Joined, equal_groups
from tests.helpers import tiny_text


@pytest.mark.parametrize("which", [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1], [1, 1, 0, 0]])
def test_joined_is_a_repeated_prompt_with_its_rows(which):
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randn((2, 3, 4, 5), generator=rng, dtype=torch.float64, requires_grad=True)
    rows = torch.randn((len(which), 3, 2, 5), generator=rng, dtype=torch.float64, requires_grad=True)
    index = torch.tensor(which)
    plain = torch.cat([prompts[index], rows], dim=-2)
    attended = Joined.apply(prompts, rows, index, equal_groups(index, 2))
    assert torch.equal(attended, plain)
    weights = torch.randn(plain.shape, generator=rng, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((weights * table).sum(), (prompts, rows)) for table in (attended, plain)), strict=True):
        assert torch.allclose(one, other, atol=1e-14)


def test_groups_are_equal_only_side_by_side():
    assert equal_groups(torch.tensor([0, 0, 1, 1]), 2)
    assert not equal_groups(torch.tensor([1, 1, 0, 0]), 2)
    assert not equal_groups(torch.tensor([0, 1, 1]), 2)


def rows_of(*sizes, which=(0, 0, 1), lengths=(4, 2, 3)):
    rng = torch.Generator().manual_seed(0)
    pick = lambda *shape: torch.randint(6, 64, shape, generator=rng)  # noqa: E731
    return prefixes.Sequences([pick(size) for size in sizes], torch.tensor(which), pick(len(which), max(lengths)), torch.tensor(lengths))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 6), (6, 1), (5, 5)])
def test_prompts_of_one_token_have_nothing_to_share_and_are_right(sizes):
    backbone, rows = tiny_text.model("llama").base_model, rows_of(*sizes)
    real = torch.arange(4) < rows.lengths.unsqueeze(1)
    tables = [prefixes.run(backbone, rows, shared=shared)[real] for shared in (True, False)]
    assert torch.allclose(*tables, atol=1e-5)
    grads = [torch.autograd.grad(table.square().sum(), list(backbone.parameters())) for table in tables]
    assert all(torch.allclose(one, other, atol=1e-3, rtol=1e-4) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_nothing_of_a_prompt_is_computed_behind_its_last_keys_and_values(name):
    backbone = tiny_text.model(name).base_model
    seen: list[tuple[int, tuple[int, int]]] = []
    for number, layer in enumerate(backbone.layers):
        layer.mlp.register_forward_pre_hook(lambda _, inputs, number=number: seen.append((number, tuple(inputs[0].shape[:2]))))
    prefixes.run(backbone, rows_of(6, 6), shared=True)
    assert seen == [(0, (2, 6)), (0, (3, 4)), (1, (3, 4))]
