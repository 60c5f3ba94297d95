"""Reward models of comparisons that need not be transitive."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import Positive
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import embedded
from mmalign.types import Method


def general_preference(*, temperature: Positive = 1.0, normalised: bool = False) -> Method:
    """An embedding for every output, so that two of them say how probably people prefer the one: rock, paper and scissors have no order.

    With v the 2k scores of an output, read together, R block diagonal of k quarter turns ``[[0, -1], [1, 0]]``, and p the strength of a
    preference::

        loss = mean over pairs of  -p log sigmoid(v_w' R v_l / temperature) - (1 - p) log sigmoid(-v_w' R v_l / temperature)

    No output has a score by itself, so a run is no reward but an oracle of pairs (``trained_pairs``). With two numbers of which one is the
    same for all outputs it is Bradley and Terry's. A head that starts at 0 has no gradient here: takes ``policy.head: {use: linear, spread:
    0.02}``.

    Args:
        temperature: what the comparison is divided by; 0.1 is usual with embeddings of length 1.
        normalised: embeddings have length 1.

    Paper: General Preference Modeling with Preference Representations for Aligning Language Models, arXiv 2410.02197, eq. 4 and 7.

    Deviations: the paper lets the prompt scale each block; here the embedding's own length does.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.general_preference(), torch.ones(2, 2).bool()
        >>> steps = Steps(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), mask, kind="score")  # a quarter turn apart: v_w' R v_l = 1
        >>> feedback = Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> loss = method.loss(steps, method.signal(feedback))
        >>> (method.weigh(mask) * loss.values).sum()  # -log sigmoid(1)
        tensor(0.3133, dtype=torch.float64)
    """
    term = embedded.ahead_in_turn(temperature=temperature, normalised=normalised)
    wins = partial(embedded.wins, temperature=temperature, normalised=normalised)
    return pairwise(term, kinds=SCORES, numbers=0, wins=wins)
