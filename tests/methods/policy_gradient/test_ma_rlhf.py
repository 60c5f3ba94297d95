from __future__ import annotations

import torch

from mmalign.methods.policy_gradient.ma_rlhf import ma_rlhf
from mmalign.methods.policy_gradient.ppo import ppo
from tests.oracles.tables import table


def test_macro_actions_of_one_step_are_ppo() -> None:
    at = table("token")
    macro, plain = ma_rlhf(length=1), ppo(value_clip=None)
    signals = [method.signal(at.feedback()) for method in (macro, plain)]
    torch.testing.assert_close(signals[0][..., :4], signals[1])
    torch.testing.assert_close(macro.loss(at.steps(), signals[0]).values, plain.loss(at.steps(), signals[1]).values)


def test_one_macro_action_for_the_row_has_one_advantage() -> None:
    at = table("token")
    signal = ma_rlhf(length=100, beta=0.0).signal(at.feedback())[..., 0]
    for row in range(len(signal)):
        inside = signal[row][at.mask[row]]
        assert len(inside) == 0 or torch.equal(inside, inside[:1].expand_as(inside))
