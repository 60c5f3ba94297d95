"""SparsePO."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.types import Method, UserError


def sparsepo(
    *,
    beta: Positive = 0.1,
    masks: Literal["learned", "activations"] = "learned",
    reward_sparsity: NotNegative = 0.0,
    kl_sparsity: NotNegative = 0.0,
) -> Method:
    """Token-level DPO in which masks say which tokens carry the reward, and which are held to the reference.

    With masks ``m^u, m^d >= 0`` of each step, ``u = sum_t m^u_t log(pi / ref)_t`` and ``K = sum_t m^d_t KL(ref || pi)_t`` of a row,
    better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta [u_w - u_r - (K_r - K_w)])
                                   + sum over both rows' steps of reward_sparsity m^u_t + kl_sparsity m^d_t

    Args:
        beta: as in ``dpo``.
        masks: ``learned``, two heads of the policy's (the paper's SparsePO with independent masks); ``activations``, one mask for both
            (its MaPO), ``relu((a_t - mean a) / std a)`` over a row's steps, a the mean of all of the reference's layers before step t.
        reward_sparsity, kl_sparsity: weights of the masks' L1 norms, per step; 0 of activations, which nothing trains.

    Paper: SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks, arXiv 2410.05102.

    Deviations: the formula is that of the authors' code. The masks are the policy's (terms ``reward_mask`` and ``kl_mask``): of
    language models, ``heads: [kl_mask, reward_mask]``, a line and a ReLU on the reference's last hidden states, trained with it. They
    start at 1, where this is ``tdpo1``; their start, and one layer of states where the authors have several, are ours. Soft labels are
    ours. Masks of activations are recalled: that one serves both, that the states are those of every layer behind the embeddings,
    averaged before they are made even, that the spread is the row's own, and that a row whose steps are all alike (one of one step, too)
    has a mask of 1.
    """
    links.positive(beta=beta)
    if masks not in ("learned", "activations"):
        raise UserError(f"masks: got {masks!r}, takes 'learned' or 'activations'")
    learned = masks == "learned"
    if not learned and (reward_sparsity or kl_sparsity):
        name, value = ("reward_sparsity", reward_sparsity) if reward_sparsity else ("kl_sparsity", kl_sparsity)
        raise UserError(f"{name}: got {value:g} beside masks='activations', which nothing trains; takes 0")
    return pairwise(token_level.masked(beta=beta, reward_sparsity=reward_sparsity, kl_sparsity=kl_sparsity, learned=learned))
