"""RLHF with macro actions."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion
from mmalign.needs import MASK, SEGMENT, refs
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import Reading, read
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.state.controllers import AdaptiveKL
from mmalign.objectives.terms.critics import Critic, Macro, penalised
from mmalign.types import Method, UserError


def ma_rlhf(
    *,
    macro: Literal["ngram", "segment", "perplexity"] = "ngram",
    length: Count = 5,
    pool: Literal["mean", "sum"] = "mean",
    clip: Positive = 0.2,
    gamma: Proportion = 1.0,
    lam: Proportion = 0.95,
    value: NotNegative = 1.0,
    beta: NotNegative = 0.02,
) -> Method:
    """PPO whose decisions are runs of several tokens: rewards have fewer steps to travel back.

    A macro action m is a run of tokens; its reward is the sum of ``r_t = r at the last step - beta (log pi_old - log ref)_t`` over them,
    its value V the mean, or the sum, of theirs; advantages and returns go over macro actions as in ``ppo``, and every token has those of
    its macro action::

        loss = mean_it [ -min(rho_it A_m, clip(rho_it, 1 - clip, 1 + clip) A_m) + value / 2 (V_m - R_m)^2 ]

    Args:
        macro: ``ngram``, ``length`` tokens each; ``segment``, what the policy numbers (``policy.segments``: sentences, clauses, turns, the
            ``constituents`` of a parse, or what a function of your own says); ``perplexity``, as long as each token surprises ``ref`` no
            more than the one before.
        length: of an n-gram, in live steps; 1 is ``ppo``.
        pool: how a macro action's value comes from its tokens'.
        clip, gamma, lam, value, beta: as in ``ppo``; gamma and lam by macro action.

    Paper: MA-RLHF: Reinforcement Learning from Human Feedback with Macro Actions, arXiv 2410.02743.

    Deviations: ratios are by token. A discount inside a macro action is left out. Runs by perplexity, and constituents, are recalled; a
    parser is spaCy's or your own, and runs of random lengths are segments of a function of your own. Steps in no segment (number 0) are
    outside: they have no advantage.

    Dialects:
    - MA-RLHF: length=5, pool="mean": its code; lengths of 1, 2, 3, 5 or 10 drawn at random are segments.
    """
    if macro not in ("ngram", "segment", "perplexity") or pool not in ("mean", "sum"):
        raise UserError(f"macro, pool: got {macro!r} and {pool!r}, takes 'ngram', 'segment' or 'perplexity', and 'mean' or 'sum'")
    ngrams = Reading(lambda feedback: returns.macro(returns.known(feedback), length=length), frozenset({MASK}))
    segments = Reading(lambda feedback: read(feedback, SEGMENT), frozenset({SEGMENT}))
    calming = Reading(
        lambda feedback: returns.falling(-read(feedback, refs("ref")), returns.known(feedback)), frozenset({MASK, refs("ref")})
    )
    return actor_critic(
        rewards=penalised(AdaptiveKL(beta=beta, target=None)),
        critic=Critic(gamma, lam, value),
        clip=clip,
        macro=Macro({"ngram": ngrams, "segment": segments, "perplexity": calming}[macro], pool == "mean"),
    )
