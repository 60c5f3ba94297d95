from __future__ import annotations

import torch

from mmalign.methods.policy_gradient.gspo import gspo
from tests.oracles.tables import table


def test_both_forms_have_one_gradient_where_a_row_has_one_advantage() -> None:
    gradients = []
    for form in ("sequence", "token"):
        at, method = table("token"), gspo(form=form, low=0.1, high=0.1)  # type: ignore[arg-type]
        loss = (method.weigh(at.mask) * method.loss(at.steps(), method.signal(at.feedback())).values).sum()
        gradients.append(torch.autograd.grad(loss, at.leaf)[0])
    torch.testing.assert_close(*gradients)
