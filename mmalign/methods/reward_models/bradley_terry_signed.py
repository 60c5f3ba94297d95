"""Reward models of costs, whose sign says whether an output is safe."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import rated
from mmalign.types import Method


def bradley_terry_signed(*, weight: NotNegative = 1.0) -> Method:
    """A cost for every output: above 0 where it is unsafe, below 0 where it is safe, and the higher of two the more harmful one's.

    With c the scores, w the more harmful row of a pair and z = 1 of a row that is unsafe, -1 of one that is safe (the sign of what records
    rate the row; 0 says nothing)::

        loss = mean over pairs of  -log sigmoid(c_w - c_l)  - weight [log sigmoid(z_w c_w) + log sigmoid(z_l c_l)]

    For one name in ``policy.scores``. Records of PKU-SafeRLHF's columns have both labels of a pair, in the dimensions ``helpful`` and
    ``harmful``: ``scores: [helpful]`` with ``bradley_terry`` is the reward, ``scores: [harmful]`` with this the cost; in a run ``combine:
    {use: constrained, ...}`` keeps its mean below a limit.

    The log has ``signs``, the part of rows on their own side of 0: of held-out records, how good a guardrail the model is.

    weight: of the signs.

    Paper: Safe RLHF, arXiv 2310.12773, eq. 6 (the cost model's loss; number recalled); Safe RLHF-V, arXiv 2503.17682, which trains the same
    on pictures.

    Deviations: none known. A pair of which a row is not rated says nothing.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.bradley_terry_signed(), torch.tensor([[True], [True]])
        >>> steps = Steps(torch.tensor([[1.0], [0.0]]).double(), mask, kind="score")
        >>> feedback = Feedback(torch.tensor([1.0, -1.0]).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> loss = method.loss(steps, method.signal(feedback))
        >>> (method.weigh(mask) * loss.values).sum()  # 2 * -log sigmoid(1) + log 2
        tensor(1.3197, dtype=torch.float64)
    """
    return pairwise(rated.ahead_by(0.0), rated.on_its_side(weight), kinds=SCORES, wins=rated.wins)
