"""Identity Preference Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Half, Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.types import Method


def ipo(*, beta: Positive = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total", smoothing: Half = 0.0) -> Method:
    """DPO's margin pulled to a fixed size: sure preferences do not make the reference forgotten.

    With m DPO's margin::

        loss = mean over pairs of  (m - 1 / (2 beta))^2

    Args:
        beta: the paper's tau; a margin of 1 / (2 beta) is asked for, in the units of ``margin``, so that a beta does not carry over
            from one margin to another.
        margin, smoothing: as in ``dpo``.

    Paper: A General Theoretical Paradigm to Understand Learning from Human Preferences, arXiv 2310.12036, eq. 17.

    Deviations: soft labels are ours; they move the target to (2 p - 1) / (2 beta).

    Dialects:
    - TRL 1.16: margin="per_step": means over tokens, as its authors say the paper's authors did; LLaMA-Factory and HALOs too.
    - OpenRLHF 0.11: margin="total": sums, as eric-mitchell's code and TRL's online trainers.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method = mm.methods.ipo(beta=0.5)
        >>> mask, ref = torch.tensor([[True], [True]]), torch.tensor([[-3.0], [-3.0]]).double()
        >>> steps = Steps(torch.tensor([[-2.0], [-4.0]]).double(), mask, refs={"ref": ref})
        >>> feedback = Feedback(torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> float((method.weigh(mask) * method.loss(steps, method.signal(feedback)).values).sum())  # (2 - 1)^2
        1.0
    """
    return dpo(beta=beta, margin=margin, link="squared", smoothing=smoothing)
