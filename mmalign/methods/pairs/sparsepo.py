"""SparsePO."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.types import Method


def sparsepo(*, beta: Positive = 0.1, reward_sparsity: NotNegative = 0.0, kl_sparsity: NotNegative = 0.0) -> Method:
    """Token-level DPO in which masks say which tokens carry the reward, and which are held to the reference.

    With masks ``m^u, m^d >= 0`` of each step, ``u = sum_t m^u_t log(pi / ref)_t`` and ``K = sum_t m^d_t KL(ref || pi)_t`` of a row,
    better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta [u_w - u_r - (K_r - K_w)])
                                   + sum over both rows' steps of reward_sparsity m^u_t + kl_sparsity m^d_t

    Args:
        beta: as in ``dpo``.
        reward_sparsity, kl_sparsity: weights of the masks' L1 norms, per step.

    Paper: SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks, arXiv 2410.05102.

    Deviations: the formula is that of the authors' code. The masks are the policy's (terms ``reward_mask`` and ``kl_mask``): of
    language models, ``heads: [kl_mask, reward_mask]``, a line and a ReLU on the reference's last hidden states, trained with it. They
    start at 1, where this is ``tdpo1``; their start, and one layer of states where the authors have several, are ours. Masks made of
    activations (MaPO) are not here. Soft labels are ours.
    """
    links.positive(beta=beta)
    return pairwise(token_level.masked(beta=beta, reward_sparsity=reward_sparsity, kl_sparsity=kl_sparsity))
