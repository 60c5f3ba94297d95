"""Losses of pairs as their authors' code writes them, against our dialects of it: value and gradient on rows of many tokens.

Each function below is one of their losses re-derived in a straight line, row by row: above all whether it adds a row's tokens up or takes
their mean, which a pair of one token does not show.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

import mmalign as mm
from mmalign import needs
from mmalign.types import Feedback, Steps

LENGTHS = torch.tensor([60, 47, 12, 33])  # better, worse, better, worse
MASK = torch.arange(60) < LENGTHS[:, None]
CHANGED = MASK & (torch.arange(60) % 10 == 3)  # 6, 5, 1 and 3 of them


def numbers() -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities now, and of two named references."""
    rng = torch.Generator().manual_seed(2)
    draw = lambda: torch.where(MASK, -torch.rand(4, 60, generator=rng, dtype=torch.float64), 0)  # noqa: E731
    return draw().requires_grad_(), {"ref": draw(), "previous": draw()}


def pairs(row: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of rows as those of the better and of the worse ones."""
    return row[0::2], row[1::2]


def ahead(row: Tensor) -> Tensor:
    better, worse = pairs(row)
    return better - worse


def rlaif_v(now: Tensor, refs: dict[str, Tensor]) -> Tensor:
    """`compute_weighted_logp` with `use_average` off, then `dpo_loss`; `dpo_beta` 0.5 and `dpo_token_weight` 3."""
    weight = torch.where(CHANGED, 3.0, 1.0)
    return softplus(-0.5 * ahead((weight * now).sum(1) - (weight * refs["ref"]).sum(1))).mean()


def open_instruct(now: Tensor, refs: dict[str, Tensor]) -> Tensor:
    """`dpo_norm` with `dpo_beta` 5."""
    return softplus(-5.0 * ahead((now - refs["ref"]).sum(1) / LENGTHS)).mean()


def simpo(now: Tensor, refs: dict[str, Tensor]) -> Tensor:
    """`beta` 2, `gamma_beta_ratio` 0.25, means."""
    return softplus(-2.0 * (ahead(now.sum(1) / LENGTHS) - 0.25)).mean()


def mnpo(now: Tensor, refs: dict[str, Tensor]) -> Tensor:
    """`ratio` 1/3 and `eta` 0.0075 over means, with one policy of the past."""
    means = {name: ahead(table.sum(1) / LENGTHS) for name, table in {"now": now, **refs}.items()}
    return ((means["now"] - means["ref"] / 3 - 2 * means["previous"] / 3 - 1 / (2 * 0.0075)) ** 2).mean()


def summed_ipo(now: Tensor, refs: dict[str, Tensor]) -> Tensor:
    """Sums, beta 0.1."""
    return ((ahead((now - refs["ref"]).sum(1)) - 1 / (2 * 0.1)) ** 2).mean()


def averaged_ipo(now: Tensor, refs: dict[str, Tensor]) -> Tensor:
    """Means, beta 0.1."""
    return ((ahead((now - refs["ref"]).sum(1) / LENGTHS) - 1 / (2 * 0.1)) ** 2).mean()


def conservative(now: Tensor, refs: dict[str, Tensor]) -> Tensor:
    """Sums, `label_smoothing` 0.1 and beta 0.1."""
    margin = 0.1 * ahead((now - refs["ref"]).sum(1))
    return (0.9 * softplus(-margin) + 0.1 * softplus(margin)).mean()


CASES = [
    ("dense_dpo", "RLAIF-V", rlaif_v, {}),
    ("dpo", "open-instruct", open_instruct, {}),
    ("simpo", "SimPO", simpo, {}),
    ("mnpo", "MNPO", mnpo, {"shares": {"ref": 1 / 3, "previous": 2 / 3}}),
    ("ipo", "OpenRLHF", summed_ipo, {"beta": 0.1}),
    ("ipo", "TRL", averaged_ipo, {"beta": 0.1}),
    ("cdpo", "OpenRLHF", conservative, {}),
]


@pytest.mark.parametrize(("name", "library", "formula", "changes"), CASES, ids=[f"{name}-{library}" for name, library, _, _ in CASES])
def test_value_and_gradient(name, library, formula, changes):
    method = mm.like(library, getattr(mm.methods, name), **changes)
    now, refs = numbers()
    wanted = formula(now, refs)
    (slope,) = torch.autograd.grad(wanted, now)
    rewards, group = torch.full((4,), torch.nan, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    signal = method.signal(Feedback(rewards, group, pairs=torch.arange(4).view(2, 2), tables={needs.MASK: MASK}))
    steps = Steps(now, MASK, refs=refs, facts={"changed": CHANGED.double()})
    loss = (method.weigh(MASK) * method.loss(steps, signal).values).sum()
    (gradient,) = torch.autograd.grad(loss, now)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert slope.abs().max() > 0 and torch.allclose(gradient, slope * MASK, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["llava15_7b/dense_dpo", "qwen25_vl_7b/dense_dpo"])
def test_configs_that_follow_them(name):
    from mmalign.config import load
    from mmalign.config.instantiate import Review, plan
    from mmalign.lookup.dialects import settings

    call = plan(load(name), Review(trust=False))
    assert call is not None and call.arguments["method"].arguments == settings("RLAIF-V", mm.methods.dense_dpo)
