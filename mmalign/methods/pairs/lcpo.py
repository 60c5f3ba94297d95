"""Latent Collective Preference Optimization."""

from __future__ import annotations

from typing import Annotated, Literal

from mmalign.arguments.ranges import Fraction, NotNegative, Positive, within
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY, DENSITIES, choose
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import relabelled
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method, UserError


def lcpo(
    *,
    base: Literal["dpo", "ipo", "simpo", "cpo"] = "dpo",
    beta: Positive = 0.1,
    gamma: NotNegative = 0.0,
    reliability: Annotated[float, within(0, 1, above=True, below=True)] = 0.9,
    momentum: Fraction = 0.1,
) -> Method:
    """Expectation-maximisation over labels that may be wrong, around any loss for pairs: doubted labels count less.

    With ``L(a, b)`` the base loss of a pair whose better row is a, label (w, r), h the reliability of its annotator, sg without gradient::

        q = sigmoid(L(r, w) - L(w, r)),    c = sg(q h / (q h + (1 - q) (1 - h)))
        loss = mean over pairs of  -c log q - (1 - c) log(1 - q),    then  h <- (1 - momentum) h + momentum * mean of its c

    Args:
        base: ``dpo``; ``ipo``, its squared link on sums; ``cpo``, DPO without the reference; ``simpo``, on means with a gap ``gamma``.
        beta: of the base.
        gamma: of ``simpo`` alone.
        reliability: h of every annotator at the start, 0.5 to below 1.
        momentum: above 0 to 1.

    Paper: Latent Collective Preference Optimization: A General Framework for Robust LLM Alignment, arXiv 2509.24159 (later: RE-PO).

    Deviations: records without an ``annotator`` share one reliability, as in the paper's main experiments. The h are state of the
    method, in the checkpoint. ``cpo`` and ``simpo`` have no likelihood term here. The formulas are from a published summary of the
    later version; for ``dpo`` they are those of the first. A soft label is a hard one in expectation.
    """
    bases = {"dpo": scores.ratio(), "ipo": scores.ratio(), "simpo": scores.policy("per_step"), "cpo": scores.policy()}
    score = choose("base", base, bases)
    if gamma and base != "simpo":
        raise UserError(f"gamma: got {gamma} for base {base!r}, which has no gap; takes 0")
    link = links.ahead(links.named("squared" if base == "ipo" else "logistic", beta=beta), by=gamma / beta)
    term = relabelled.posterior(compared(score, link), reliability=reliability, momentum=momentum)
    return pairwise(term, kinds=ANY if score.needs else DENSITIES)
