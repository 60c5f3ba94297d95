"""Accelerated Preference Optimization."""

from __future__ import annotations

from dataclasses import replace

from mmalign.arguments.ranges import Positive, Share, Steps
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method, Move, UserError


def accelerated_po(*, beta: Positive = 0.1, momentum: Share = 0.3, every: Steps = 10) -> Method:
    """Rounds of DPO with Nesterov's momentum: each round starts ahead of where the one before it ended, and takes that as its reference.

    With m the margin of log-ratios to ``previous``, the policy that a round starts from::

        loss = mean over pairs of  -log sigmoid(beta m)

    and after every round, of ended parameters w_t, ``start of the next = w_t + momentum (w_t - w_{t-1})``.

    Args:
        beta: how much a nat counts.
        momentum: alpha of the paper, 0 to below 1; 0 is iterative DPO.
        every: steps of a round.

    Paper: Accelerated Preference Optimization for Large Language Model Alignment, arXiv 2410.06293.

    Deviations: the paper extrapolates policies (eq. 3.6), ``pi_hat_{t+1} (pi_hat_{t+1} / pi_hat_t)^alpha`` normalised; parameters are
    extrapolated here, as a softmax in its logits would be, and under LoRA the effective weights, of which the adapter becomes the nearest
    that its rank can hold (``moved_error`` in the log says how near). Adam's moments run on from round to round; the paper trains with
    RMSprop. (APO is also the name of a method with anchors.) The values of beta and momentum could not be checked: no text or code of the
    authors was at hand. Soft labels are ours.
    """
    if not 0 <= momentum < 1 or every < 1:
        raise UserError(f"momentum, every: got {momentum} and {every}, takes 0 to below 1, and 1 or more steps")
    link = links.ahead(links.named("logistic", beta=beta))
    method = pairwise(compared(scores.ratio(ref="previous"), link), kinds=ANY)
    moves = (
        Move("start", {"current": 1 + momentum, "ended": -momentum}, every),
        Move("ended", {"current": 1.0}, every),
        Move("current", {"start": 1.0}, every),
        Move("previous", {"current": 1.0}, every),
    )
    return replace(method, moves=moves)
