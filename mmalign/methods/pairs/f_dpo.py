"""f-DPO."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Finite, Positive
from mmalign.objectives import divergences, links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def f_dpo(*, beta: Positive = 0.1, divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js", alpha: Finite = 0.5) -> Method:
    """DPO for a policy that is held to its reference by another divergence than the reverse KL.

    With ``u = pi / ref`` of a row and ``f'`` the derivative of the divergence::

        loss = mean over pairs of  -log sigmoid(beta [f'(u_w) - f'(u_r)])

    ``reverse_kl``: f'(u) = log u, the same run as ``dpo``. ``forward_kl``: -1 / u. ``js``: log(2 u / (1 + u)). ``alpha``: (u^(alpha - 1)
    - 1) / (alpha - 1).

    Args:
        beta: as in ``dpo``.
        divergence: what the policy is held by.
        alpha: of ``alpha``; 1 is the reverse KL.

    Paper: Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints, arXiv 2309.16240.

    Deviations: beyond 20 nats the exponentials of ``forward_kl`` and ``alpha`` go on along their tangents; TRL's forward KL is inf from
    about -88 nats on and NaN where both rows are there, and its alpha loses its gradient at 80. Soft labels, and
    the divergence by default, are ours.

    Dialects:
    - TRL 1.16: divergence="alpha", alpha=0.5: ``f_divergence_type="alpha_divergence"``.
    - TRL 1.16 forward_kl: divergence="forward_kl": without a bound.
    - TRL 1.16 js_divergence: divergence="js": the same.
    - ms-swift 4.5: divergence="alpha", alpha=0.0: its coefficient is 1 minus this one, with a default of 1.0; older TRL too.
    """
    score = scores.mapped(scores.ratio(), divergences.named(divergence, alpha=alpha))
    return pairwise(compared(score, links.ahead(links.named("logistic", beta=beta))), kinds=ANY)
