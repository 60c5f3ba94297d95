"""Binary Classifier Optimization."""

from __future__ import annotations

from torch.nn import functional

from mmalign.arguments.ranges import Positive
from mmalign.objectives import weights
from mmalign.objectives.sentences.rowwise import rowwise
from mmalign.objectives.terms import baselines
from mmalign.types import Method


def bco(*, beta: Positive = 0.1) -> Method:
    """A classifier of good and bad rows whose logit is the policy's own reward, less what rewards are on average.

    With ``r = beta (log pi - log ref)`` of the whole row and delta the mean reward::

        loss = mean over rows of  -log sigmoid(r - delta)  for a good row,  -log sigmoid(delta - r)  for a bad one

    Args:
        beta: reward of a nat.

    Paper: Binary Classifier Optimization for Large Language Model Alignment, arXiv 2404.04656.

    Deviations: delta is the mean over all rows of all updates so far, the present one included; it is state of the method, in the
    checkpoint. The paper's weights for good and bad rows of unlike prompts (a classifier's density ratio) are a matter of records:
    ``records: {use: matched, of: ...}``. Soft labels are ours.

    Dialects:
    - TRL 1.16 (experimental BCOTrainer): beta=0.1: the same running mean, which is not in its checkpoint.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method = mm.methods.bco(beta=0.5)
        >>> mask, ref = torch.tensor([[True], [True]]), torch.tensor([[-3.0], [-3.0]]).double()
        >>> steps = Steps(torch.tensor([[-1.0], [-5.0]]).double(), mask, refs={"ref": ref})
        >>> rewards, group = torch.zeros(2).double(), torch.tensor([0, 1])
        >>> signal = method.signal(Feedback(rewards, group, labels=torch.tensor([1.0, 0.0]).double()))
        >>> method.loss(steps, method.survey(steps, signal)).values  # rewards of 1 and -1, their mean 0: -log sigmoid(1) twice
        tensor([[0.3133],
                [0.3133]], dtype=torch.float64)
    """
    return rowwise(
        good=lambda ratio, z: -functional.logsigmoid(beta * ratio - z),
        bad=lambda ratio, z: -functional.logsigmoid(z - beta * ratio),
        baseline=baselines.running(beta=beta),
        weigh=weights.sequence_mean,
    )
