"""Efficient Exact Optimization, for pairs."""

from __future__ import annotations

from typing import Annotated

from mmalign.arguments.ranges import Positive, within
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method, UserError


def exo(*, beta: Positive = 0.1, smoothing: Annotated[float, within(0, 0.5, above=True, below=True)] = 1e-3) -> Method:
    """The reverse KL where DPO has the forward one: the policy's choice between two rows, held to the people's.

    With m DPO's margin, ``q = sigmoid(beta m)`` and e the smoothing, for a sure label::

        loss = mean over pairs of  q log(q / (1 - e)) + (1 - q) log((1 - q) / e)

    Args:
        beta: as in ``dpo``.
        smoothing: e, above 0 and below 0.5; at 0 the loss is infinite.

    Paper: Towards Efficient Exact Optimization of Language Model Alignment, arXiv 2402.00856, eq. 16.

    Deviations: soft labels are ours: the expected loss under the label, whose optimum is the normalised geometric mean of the two
    smoothed labels.

    Dialects:
    - TRL 1.16: smoothing=0.001: ``loss_type="exo_pair"`` with label_smoothing, which it asks for.
    - ms-swift 4.5: smoothing=0.001: takes this value silently where label_smoothing is 0.
    """
    links.positive(beta=beta)
    if not 0 < smoothing < 0.5:
        raise UserError(f"smoothing: got {smoothing}, takes above 0 to below 0.5")
    link = links.ahead(lambda margin: links.exact(margin, beta=beta, flips=smoothing))
    return pairwise(compared(scores.ratio(), link), kinds=ANY)
