"""Reward models of people who differ, each of them by a latent of which little is known."""

from __future__ import annotations

import sys

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import latent, rated
from mmalign.types import Method


def variational_preference(*, kl: NotNegative = 0.01) -> Method:
    """A score that depends on a latent z of whoever compared, which is believed to be ``q_u = N(mu_u, s_u^2)``: the evidence lower bound.

    For policies with the head ``latent_user``, which knows the people by name, or ``encoded_user``, which is told by comparisons of theirs;
    their numbers of a row are ``m, KL(q_u | N(0, 1)), l_1 .. l_d`` (``scores: [score, kl, z1, z2]``), so that ``r = m + sum_j l_j e_j``
    with e standard normal and the same for both rows::

        loss = mean over pairs of  -p E log sigmoid(r_w - r_l) - (1 - p) E log sigmoid(r_l - r_w)  + kl KL(q_u | N(0, 1))

    kl: what the divergence counts in each pair: 1 / (comparisons of a person) is the bound itself.

    Paper: Personalizing Reinforcement Learning from Human Feedback with Variational Preference Learning (VPL), arXiv 2408.10075, sec. 4.

    Deviations: r is linear in z, so that the mean over z is a quadrature, where the paper draws; its scaling of rewards is not there, and
    neither are its queries. Under ``latent_user`` q is a person's own mean and variance, and a new person the prior.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.variational_preference(kl=0.5), torch.ones(2, 2).bool()
        >>> steps = Steps(torch.tensor([[1.5, 0.2], [0.5, 0.2]]).double(), mask, kind="score")  # of which nothing depends on z
        >>> feedback = Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> (method.weigh(mask) * method.loss(steps, method.signal(feedback)).values).sum()  # -log sigmoid(1) + 0.5 * 0.2
        tensor(0.4133, dtype=torch.float64)
    """
    return pairwise(latent.evidence(kl=kl), kinds=SCORES, numbers=sys.maxsize, wins=lambda own, other: rated.wins(own[:, :1], other[:, :1]))
