"""Trust Region Preference Approximation."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import OLD, refs
from mmalign.objectives import scores
from mmalign.objectives.parts import Part
from mmalign.objectives.sentences import all_pairs
from mmalign.types import Method, UserError


def trpa(*, beta: Positive = 0.1, anisotropy: Positive = 2.5, trust: NotNegative = 0.001) -> Method:
    """Rewards of few levels made into preferences: every row of a group is compared with every one of another level.

    ``m_i = mean_t (log pi - log ref)_it``, a the ``anisotropy`` where row i is of the best level there is, 1 elsewhere, and over the rows
    j of i's group with ``r_j != r_i``, b the better row of the two and w the worse::

        loss = mean_i mean_j [ -log sigmoid(a beta (m_b - m_w)) ] + trust mean_i mean_t k3(pi_it, pi_old_it)

    Args:
        beta: how much a nat a step counts.
        anisotropy: how much more it counts where the better row is of the highest level in the rollout.
        trust: weight of the KL of the policy that sampled to the policy, a nat a step; 0 needs no ``old``.

    Paper: Trust Region Preference Approximation: A simple and stable reinforcement learning algorithm for LLM reasoning, arXiv
    2504.04524.

    Deviations: the comparison, the mean over steps, anisotropy and the trust region (k3, .001 in its script) are those of the released
    code, which measures a KL to ``ref`` and does not add it, takes the mean over all pairs of a micro-batch, and has other losses for
    batches without a pair; here every row counts the same. Levels are told apart like ties (1e-6 of the largest reward).

    Dialects:
    - TRPA: beta=0.1, anisotropy=2.5, trust=0.001: its script.
    """
    if trust < 0:
        raise UserError(f"trust: got {trust}, takes 0 or more")
    region = Part(lambda steps: trust * all_pairs.drift(steps), frozenset({OLD}))
    return all_pairs.all_pairs(
        score=Part(scores.log_ratio, frozenset({refs("ref")})),
        beta=beta,
        favoured=anisotropy,
        penalty=region if trust else None,
    )
