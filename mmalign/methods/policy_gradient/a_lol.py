"""Advantage-Leftover Lunch."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, stack, where

from mmalign.arguments.ranges import NotNegative, Proportion
from mmalign.needs import refs
from mmalign.objectives import ratios, scores, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import bounded_exp
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms.critics import ahead_of_prompt, prompt_value_loss
from mmalign.objectives.terms.gates import Gate, Signal
from mmalign.types import Feedback, Method, Steps, UserError


def a_lol(
    *,
    ratio: Literal["row", "token", "none"] = "row",
    clip: Proportion = 0.9,
    baseline: Literal["group", "value", "none"] = "group",
    value: NotNegative = 1.0,
) -> Method:
    """An offline policy gradient on what is left over of given answers: those that are better than the reference's average.

    ``A_i = max(0, r_i - V)``, V what the reference is worth on the prompt, ``rho = pi / ref`` of the whole row, sg: without gradient::

        loss = mean_i [ -sg(clip(rho_i, 1 - clip, 1 + clip)) A_i sum_t log pi_it ]

    and with ``baseline="value"``, V_i what the critic says before the first token, ``+ value mean_i (V_i - r_i)^2 / 2``.

    Args:
        ratio: of what: ``row``; ``token``, each by its own (the paper's A-LoL seq.); ``none``, 1 everywhere (its A-LoL ref. free).
        clip: how far a ratio may leave 1, both ways.
        baseline: V: ``group``, the mean reward of the row's group; ``value``, a value head's, for which one answer to a prompt is enough;
            ``none``, 0: rewards are advantages already, as those of the records ``prioritised`` are, which draws rows by them.
        value: weight of the value head's loss, with ``baseline="value"``.

    Paper: Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models, arXiv 2305.14718.

    Deviations: the paper fits V on the frozen reference before it trains; here the head stands on the policy and is fitted meanwhile, on
    all rows, so that in the first updates V is not yet worth anything. Its priority sampling by advantage is the records ``prioritised``,
    with their own V. The variant with a KL is not here. clip is its code's.

    Dialects:
    - LoL-RL: clip=0.9, baseline="value": its code (`ppo_clip`).
    """
    if ratio not in ("row", "token", "none") or not 0 <= clip <= 1:
        raise UserError(f"ratio, clip: got {ratio!r} and {clip}, takes 'row', 'token' or 'none', and a number in 0..1")
    if baseline not in ("group", "value", "none"):
        raise UserError(f"baseline: got {baseline!r}, takes 'group', 'value' or 'none'")

    def weight(steps: Steps, signal: Signal) -> Tensor:
        gap = scores.log_ratio(steps)
        gap = gap.sum(1, keepdim=True).expand_as(gap) if ratio == "row" else gap
        return bounded_exp(gap).clamp(1 - clip, 1 + clip)

    gate = Gate(weight, frozenset({refs("ref")}), unit="row" if ratio == "row" else "cell")

    def above(feedback: Feedback) -> Tensor:
        if baseline == "none":
            return where(feedback.rewards.isnan(), 0.0, feedback.rewards).clamp(min=0)
        return advantages.centred(feedback.rewards, feedback.group).clamp(min=0)

    of_prompt = ahead_of_prompt()

    def above_value(feedback: Feedback) -> Tensor:
        ahead, *rest = of_prompt.of(feedback).unbind(-1)
        return stack([ahead.clamp(min=0), *rest], dim=-1)

    valued = baseline == "value"
    return policy_gradient(
        advantage=of_prompt._replace(of=above_value) if valued else above,
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        gate=None if ratio == "none" else gate,
        critic=prompt_value_loss(value) if valued else None,
        weigh=partial(weights.constant_length, length=1),
        keep=None if valued else (lambda feedback: above(feedback) > 0),  # a critic learns of bad rows too
    )
