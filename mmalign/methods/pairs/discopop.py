"""DiscoPOP."""

from __future__ import annotations

from mmalign.arguments.ranges import Fraction, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method, UserError


def discopop(*, beta: Positive = 0.05, tau: Fraction = 0.05) -> Method:
    """The loss that a language model discovered: logistic for pairs that are behind, exponential for pairs that are ahead.

    With m DPO's margin, ``z = beta m`` and ``s = sigmoid(z / tau)``::

        loss = mean over pairs of  -(1 - s) log sigmoid(z) + s exp(-z)

    Args:
        beta: as in ``dpo``.
        tau: width of the blend, above 0 to 1.

    From where the policy is its reference the loss falls as pairs fall *behind*: its slope at m = 0 is ``beta ((1 - log 2) / (4 tau) -
    3 / 4)``, above 0 for tau below .102, and it is stationary at margins of -2.37 and 1.44 nats (the defaults). Pairs that start at 0 and
    are pulled at all together end at -2.37, with the worse row the likelier one; only what noise carries past 1.44 is ranked as labelled.
    With tau above .103 margins rise from 0. ``configs/text/TUNED.md`` has it measured.

    Paper: Discovering Preference Optimization Algorithms with and for Large Language Models, arXiv 2406.08414, eq. 5.

    Deviations: ``s exp(-z)`` is computed as one exponential. TRL and ms-swift multiply: loss and gradient are NaN there for
    z below about -89 in float32. Soft labels are ours.

    Dialects:
    - TRL 1.16: beta=0.1, tau=0.05: ``loss_type="discopop"``, ``discopop_tau``.

    Examples:
        >>> margin = torch.tensor([-2.3714, 0.0, 1.4401]).double().requires_grad_()
        >>> links.discovered(margin, beta=0.05, tau=0.05).sum().backward()
        >>> [round(slope, 5) + 0.0 for slope in margin.grad.tolist()]  # above 0: down with the margin
        [0.0, 0.03921, 0.0]
    """
    links.positive(beta=beta)
    if not 0 < tau <= 1:
        raise UserError(f"tau: got {tau}, takes above 0 to 1")
    link = links.ahead(lambda margin: links.discovered(margin, beta=beta, tau=tau))
    return pairwise(compared(scores.ratio(), link), kinds=ANY)
