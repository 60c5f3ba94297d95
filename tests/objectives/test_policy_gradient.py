from __future__ import annotations

import math

import pytest
import torch

from mmalign.methods.denoising.flow_grpo import flow_grpo
from mmalign.methods.policy_gradient.grpo import grpo
from mmalign.needs import DT, OLD, STD, kls
from mmalign.objectives import ratios, weights
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.surrogates import Surrogate
from mmalign.types import Steps, UserError
from tests.oracles.tables import table


def test_metrics_by_hand() -> None:
    """Three live cells with ratios 1, 2, 1/2 and advantages +1, +1, -1; a dead cell full of nonsense."""
    ratio = torch.tensor([[1.0, 2.0], [0.5, 1e9]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    kl = torch.tensor([[0.3, 0.6], [0.9, 1e9]], dtype=torch.float64)
    steps = Steps(ratio.log(), mask, torch.zeros(2, 2).double(), {"ref": torch.zeros(2, 2).double()}, {"ref": kl})
    metrics = grpo(clip=0.2).loss(steps, torch.tensor([[1.0], [-1.0]], dtype=torch.float64)).metrics
    log2 = torch.tensor(2.0).log().item()
    wanted = {"ratio_mean": 3.5 / 3, "ratio_max": 2.0, "clip_fraction": 2 / 3, "approx_kl": ((1 - log2) + (-0.5 + log2)) / 3, "kl": 0.6}
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(wanted)
    estimated = grpo().loss(Steps(steps.log_probs, mask, steps.old, steps.refs), torch.zeros(2, 1).double()).metrics["kl"]
    assert estimated.item() == pytest.approx(((0.5 - 1 + log2) + (2 - 1 - log2)) / 3)


def test_kl_and_approx_kl_are_nats_in_every_dialect() -> None:
    at = table("transition")
    signal = flow_grpo().signal(at.feedback())
    plain = flow_grpo(ratio="per_step").loss(at.steps(), signal).metrics
    scaled = flow_grpo(beta=0.1, kl="flow_grpo").loss(at.steps(), signal).metrics
    assert plain["kl"] == scaled["kl"] and plain["approx_kl"] == scaled["approx_kl"]
    assert plain["ratio_mean"] != scaled["ratio_mean"]


def test_a_part_that_forgets_the_mask_does_not_reach_the_loss() -> None:
    at = table("token")
    method = policy_gradient(
        advantage=lambda feedback: feedback.rewards.nan_to_num(),
        log_ratio=ratios.named("per_step"),
        surrogate=lambda ratio, advantage: Surrogate(torch.full_like(ratio, math.nan).where(~at.mask, ratio), ratio > 9),
        weigh=weights.token_mean,
    )
    values = method.loss(at.steps(), method.signal(at.feedback())).values
    assert values.isfinite().all() and not values[~at.mask].any()


def test_needs_and_unit_come_from_the_parts() -> None:
    assert flow_grpo().needs == {OLD} and flow_grpo().unit == "cell"
    assert flow_grpo(beta=0.1, kl="flow_grpo", ratio="cps").needs == {OLD, STD, DT, kls("ref")}
    assert grpo(ratio="per_sequence").unit == "row"


def test_a_signal_of_the_wrong_shape_is_refused() -> None:
    at = table("token")
    with pytest.raises(UserError, match=r"signal: got shape \[12\], takes \[12, 1\] or \[12, 5\]"):
        grpo().loss(at.steps(), grpo().signal(at.feedback())[:, 0])
