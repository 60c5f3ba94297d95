"""How often the worse row is the likelier one, and by how much, to the policy and to its reference, is measured."""

from __future__ import annotations

import torch

import mmalign as mm
from mmalign.types import Feedback, Steps


def test_violations_are_parts_of_pairs() -> None:
    log_probs = torch.tensor([[-1.0], [-2.0], [-3.0], [-1.0], [-1.0], [-5.0]]).double()  # g: 1, -2, 4
    ref = torch.tensor([[-3.0], [-2.0], [-3.0], [-1.0], [-6.0], [-5.0]]).double()  # g_ref: -1, -2, -1
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5]])
    feedback = Feedback(torch.zeros(6).double(), torch.arange(6) // 2, pairs=pairs, strength=torch.tensor([1.0, 0.9, 0.2]).double())
    for method in (mm.methods.constrained_po(), mm.methods.dpo()):
        metrics = method.loss(Steps(log_probs, torch.ones(6, 1, dtype=torch.bool), refs={"ref": ref}), method.signal(feedback)).metrics
        assert metrics["violation"].item() == 2 / 3  # of the third pair the second row is the better one: g -4, g_ref 1
        assert metrics["reference_violation"].item() == 2 / 3
        assert metrics["violation_nats"].item() == (2 + 4) / 3 and metrics["reference_violation_nats"].item() == (1 + 2) / 3
