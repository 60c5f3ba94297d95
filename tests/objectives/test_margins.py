from __future__ import annotations

import pytest
import torch

from mmalign.objectives.terms import margins


def number(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_target_is_gamma_where_the_reference_has_less_and_the_reference_s_where_it_has_more():
    targets = margins.raised(number(-200.0, 0.5, 200.0), gamma=0.5, tau=2.0, alpha=1.0)
    assert targets.tolist() == pytest.approx([0.5, 0.5 + torch.tensor(2.0).log().item() / 2, 200.0])
    assert margins.raised(number(-200.0), gamma=0.5, tau=2.0, alpha=2.0).item() == pytest.approx(-200 + 200.5 / 2)


def test_a_clipped_target_never_prefers_the_worse_row():
    assert margins.clipped(number(-3.0, 0.0, 3.0)).tolist() == [0.0, 0.0, 3.0]


def test_far_references_are_finite():
    far = number(-1e4, 1e4)
    assert margins.raised(far, gamma=0.5, tau=2.0, alpha=1.0).isfinite().all()
