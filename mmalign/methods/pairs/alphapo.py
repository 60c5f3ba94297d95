"""AlphaPO."""

from __future__ import annotations

from mmalign.arguments.ranges import Finite, NotNegative, Positive
from mmalign.objectives import divergences, links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def alphapo(*, beta: Positive = 2.0, gamma: NotNegative = 1.0, alpha: Finite = 0.25) -> Method:
    """SimPO with the reward bent: the log-probability becomes a power, and alpha says how fast it flattens.

    With a the mean log-probability of a row's steps, ``r = (1 - e^(-alpha a)) / alpha``, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (r_w - r_r) - gamma)

    Args:
        beta, gamma: as in ``simpo``.
        alpha: of the reward; 0 is SimPO.

    A token of a row with T of them is pulled by ``s e^(-alpha a) / T``, s the pair's own factor, so that for alpha above 0 the less likely
    row, mostly the worse one, is pulled harder than the better one, and words that both have, as the full stop at the end of each, become
    less likely. ``simpo`` has this by 1 / T alone. ``configs/text/TUNED.md`` has it measured: with alpha=-1 the pull turns.

    Paper: AlphaPO: Reward Shape Matters for LLM Alignment, arXiv 2501.03884.

    Deviations: ``-expm1(-alpha a) / alpha``, which goes on along its tangent beyond 20 nats; TRL's ``exp(lp).pow(-alpha)`` is NaN for a
    log-probability below about -104 in float32, as sums over a text are: it takes the sum unless ``loss_type="simpo"``. beta and
    gamma are tuned in the paper; these are ours. Soft labels are ours.

    Dialects:
    - TRL 1.16: beta=0.1, gamma=0.5, alpha=0.25: CPOTrainer, ``loss_type="simpo"``, ``simpo_gamma=0.5``, ``cpo_alpha=0``.
    """
    links.positive(beta=beta)
    link = links.ahead(links.named("logistic", beta=beta), by=gamma / beta)
    bent = scores.mapped(scores.policy("per_step"), lambda mean: divergences.alpha_divergence(mean, alpha=1 - alpha))
    return pairwise(compared(bent, link))
