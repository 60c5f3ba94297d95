"""The head in pieces: equal to a plain log-softmax, in value and gradient, and never in memory as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmalign.policies.language.models import logits as of_head
from mmalign.policies.language.models.logits import LOG_PROBS, Matrix, numbers_of

WORDS, WIDTH, AT_ONCE = 13, 5, 2
COUNT = 19


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 4 positions and 6 words, neither of which divides what there is."""
    monkeypatch.setattr(of_head, "ROWS", 4)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def made(bias: bool, dtype: torch.dtype = torch.float64, words: int = WORDS) -> tuple[Matrix, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    layer = nn.Linear(WIDTH, words, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    hidden = torch.randn((COUNT, WIDTH), generator=rng).to(dtype).requires_grad_()
    return Matrix(layer), hidden, torch.randint(3, WORDS, (COUNT,), generator=rng)


def scored(head: Matrix, hidden: Tensor, tokens: Tensor) -> Tensor:
    return numbers_of(head, hidden, tokens, temperature=0.7, at_once=AT_ONCE, never=torch.tensor([0, 2]))[LOG_PROBS]


def plain(head: Matrix, hidden: Tensor, tokens: Tensor) -> Tensor:
    logits = head(hidden) / 0.7
    return logits.index_fill(-1, torch.tensor([0, 2]), -torch.inf).log_softmax(-1)[torch.arange(len(tokens)), tokens]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [True, False])
def test_pieces_equal_a_plain_log_softmax(bias: bool, trained: bool) -> None:
    head, hidden, tokens = made(bias)
    head.layer.requires_grad_(trained)
    weights, inputs = torch.linspace(-1, 2, COUNT).double(), [hidden, *(head.layer.parameters() if trained else [])]
    scores, truth = scored(head, hidden, tokens), plain(head, hidden, tokens)
    assert torch.allclose(scores, truth, atol=1e-12)
    ours, theirs = (torch.autograd.grad((weights * table).sum(), inputs) for table in (scores, truth))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-11)


def test_a_backward_pass_may_come_after_other_forward_passes_and_twice() -> None:
    head, hidden, tokens = made(False)
    truth = torch.autograd.grad(plain(head, hidden, tokens).sum(), head.layer.weight)[0]
    first = scored(head, hidden, tokens)
    second = scored(head, hidden.flip(0) * 2, tokens)  # before the backward pass of the first, as contrasts are
    second.sum().backward()
    again = [torch.autograd.grad(first.sum(), head.layer.weight, retain_graph=True)[0]]
    again.append(torch.autograd.grad(first.sum(), head.layer.weight)[0])
    for values in again:
        assert torch.allclose(values, truth, atol=1e-11)


@pytest.mark.parametrize("trained", [True, False])
def test_logits_are_never_there_as_a_whole(trained: bool) -> None:
    head, hidden, tokens = made(False, words=200)
    head.layer.requires_grad_(trained)
    with Largest() as seen:
        scored(head, hidden, tokens).sum().backward()
    assert seen.numel <= (head.layer.weight.numel() if trained else 500)  # a piece of the matrix is 500, one of all words 4 * 200


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_types_stay_near_the_truth(dtype: torch.dtype) -> None:
    allowed = 0.03 if dtype == torch.bfloat16 else 1e-5
    for trained in (True, False):
        head, hidden, tokens = made(True, dtype)
        head.layer.requires_grad_(trained)
        wide = Matrix(nn.Linear(WIDTH, WORDS, dtype=torch.float64))
        wide.layer.load_state_dict(head.layer.state_dict())
        inputs = hidden.detach().double().requires_grad_()
        scores, truth = scored(head, hidden, tokens), plain(wide, inputs, tokens)
        assert float((scores - truth).abs().max() / truth.abs().max()) < allowed
        ours, theirs = torch.autograd.grad(scores.sum(), hidden)[0].double(), torch.autograd.grad(truth.sum(), inputs)[0]
        assert float((ours - theirs).norm() / theirs.norm()) < allowed


def test_tokens_whose_probability_is_rounded_to_nothing_have_their_log_probability() -> None:
    layer = nn.Linear(1, 4, bias=False)
    layer.weight.data = torch.tensor([[0.0], [300.0], [-50.0], [75.0]])
    hidden = torch.ones((3, 1), requires_grad=True)
    values = numbers_of(Matrix(layer), hidden, torch.tensor([0, 1, 2]))[LOG_PROBS]
    assert torch.allclose(values, torch.tensor([-300.0, 0.0, -350.0], dtype=torch.float64), atol=1e-4)
    slope = torch.autograd.grad(values.sum(), hidden)[0].flatten()
    assert torch.allclose(slope, torch.tensor([-300.0, 0.0, -350.0]), atol=1e-3)
