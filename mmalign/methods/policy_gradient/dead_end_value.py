"""The value of dead ends: how surely a text ends badly after each word, whatever is done then."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite
from mmalign.needs import DEAD_END, DEAD_END_BEST, refs
from mmalign.objectives import weights
from mmalign.objectives.parts import held, live, live_mean, refuse_kind
from mmalign.objectives.terms.dead_ends import backed_up
from mmalign.types import Feedback, Loss, Method, Move, Steps

DRAWS = Move("start", {"current": 1.0}, every=2**62)  # made before the first step, and never again


def dead_end_value(*, bad_below: Finite = 0.5, then: Literal["best", "said"] = "best") -> Method:
    """Temporal differences of a word's danger, on texts of the model as it was at first: what ``guidance.rectified`` takes as its bound.

    In the decision process whose states are beginnings of a text, a text that ends badly is paid -1, all else 0, and nothing is discounted,
    so that ``Q(s, a)`` is in -1..0, and -1 where no continuation helps: a dead end. With Q the head ``dead_end`` of the policy::

        y_t = E max of Q(s_{t+1}, a) over 4 words a of start, or Q(s_{t+1}, a_{t+1}), without gradient
        y_T = -1 if reward < bad_below, else 0,   of the last word
        loss = mean_it (Q(s_t, a_t) - y_t)^2 / 2

    Args:
        bad_below: the reward below which a text ended badly. Texts without a reward teach nothing.
        then: what a word leads to. ``best``: the best of four words that the model would say after it, so that Q comes near the papers'
            optimal value, and words after which the rest can still end well are left alone; many texts. ``said``: the word that was said,
            so that Q becomes the chance that the model itself ends badly from there: at least as much, and so a stricter bound, learned
            from few.

    For policies of ``transformers`` with ``heads: [dead_end]``; the rest of the model is what reads, and is trained with it: its own words
    are no longer what they were, and it is the model at the start (``start``) that draws, and that is rectified in the end.

    Paper: Systematic Rectification of Language Models via Dead-end Analysis, arXiv 2302.14003, sec. 3 and 4 (the decision process and the
    bound; that Q is learned by deep Q-learning on the model's own texts, as recalled); Fatemi et al., Medical Dead-ends and Learning to
    Identify High-risk States and Treatments, arXiv 2110.04186.

    Deviations: the papers' maximum over all words never comes down from where it began, since some word is always left that was hardly
    tried after a bad one and is still believed to be safe; here it is the expected maximum over a few draws of the model
    (``best_of_draws``; Ghasemipour et al., EMaQ, arXiv 2007.11091, as recalled). ``then: said``; no target network and no second Q, whose
    best is taken of the parameters as they are; Q is kept in -1..0 by a sigmoid, where the papers clip; the reward of a whole text is what
    makes its end bad, where a classifier of toxicity did.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.dead_end_value(), torch.tensor([[True, True]])
        >>> q, best = torch.tensor([[-0.5, -0.25]]).double(), torch.tensor([[0.0, -0.1]]).double()
        >>> steps = Steps(torch.zeros(1, 2).double(), mask, terms={"dead_end": q, "dead_end_best": best}, kind="token")
        >>> signal = method.signal(Feedback(torch.tensor([0.0]).double(), torch.tensor([0])))  # it ended badly
        >>> method.loss(steps, signal).values  # (-0.5 + 0.1)^2 / 2, (-0.25 + 1)^2 / 2
        tensor([[0.0800, 0.2812]], dtype=torch.float64)
    """

    def signal(feedback: Feedback) -> Tensor:
        known = ~feedback.rewards.isnan()
        bad = known & (feedback.rewards < bad_below)
        return torch.stack([known.double(), bad.double()], -1)[:, None]

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, frozenset({"token"}))
        q = live(held(steps, DEAD_END).to(steps.log_probs), steps.mask)
        after = live(held(steps, DEAD_END_BEST).to(steps.log_probs), steps.mask) if then == "best" else q
        told = steps.mask & (signal[:, :, 0] != 0)
        target = backed_up(after.detach(), steps.mask, signal[:, 0, 1])
        with torch.no_grad():
            bad = signal[:, :, 1].expand_as(q)
            metrics = {"danger": -live_mean(q, told), "bad": live_mean(bad, told), "error": live_mean((q - target).abs(), told)}
        return Loss(live((q - target) ** 2 / 2, told), metrics, told.sum())

    return Method(
        signal=signal,
        loss=loss,
        weigh=weights.token_mean,
        needs=frozenset({DEAD_END, refs("start")} if then == "best" else {DEAD_END}),
        unit="row",
        kinds=frozenset({"token"}),
        keep=lambda feedback: ~feedback.rewards.isnan(),
        moves=(DRAWS,),
        sampled_by="start",
    )
