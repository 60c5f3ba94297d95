"""Several rewards as one: ``combine: {use: weighted_sum, ...}`` of the recipe ``online``, or of the reward ``combined``.

Each is a function of the rewards by name, ``{name: [B]}``, into ``[B]``. What a combination does about a missing score (NaN) is its
``missing``: ``row`` leaves the row without a reward, ``rest`` takes the rewards that are there; a missing one is never 0. What is kept
from rollout to rollout is in ``balancing.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, NotNegative, Positive, Proportion
from mmalign.combinations._parts import Chain, Combination, Missing, Rows, Transforms, chosen, or_missing, refuse_missing, table, usable
from mmalign.combinations.transforms import z_score
from mmalign.conversations import question
from mmalign.types import UserError

__all__ = [
    "bayesian", "gated", "harmonic", "lexicographic", "lower_bound", "mixture_of_judges", "nominal_and_worst", "normalised_sum",
    "pessimistic", "weighted_sum", "worst",
]  # fmt: skip

Weights = Mapping[str, Finite]
Parts = Mapping[str, Tensor]


def combination(name: str, transforms: Transforms | None, of: Callable[[Parts, Rows], Tensor]) -> Combination:
    """``of`` after the transforms, whose state is the combination's."""
    chain = Chain(name, transforms)
    return Combination(name, lambda parts, rows: of(chain.apply(parts, rows), rows), chain)


def weighted_sum(
    *, weights: Weights | None = None, transforms: Transforms | None = None, missing: Missing = "row",
    required: Sequence[str] = (),
) -> Combination:  # fmt: skip
    """``sum_k w_k r_k``; where some are missing and that is allowed, ``sum_k |w_k| / sum_known |w_k|`` times the sum of the known.

    Args:
        weights: name -> weight of the rewards that count; all of them with 1 by default.
        transforms: name -> what is done to that reward first (``transforms.py``).
        missing: ``row``, a row without one of them has no reward; ``rest``, the others stand for it, which makes sense where all have
            one scale. required: rewards whose absence leaves the row without one all the same.

    Examples:
        >>> parts = {"hps": torch.tensor([0.25, 0.5]).double(), "ocr": torch.tensor([1.0, torch.nan]).double()}
        >>> group, prompts = torch.tensor([0, 0]), ["a sign", "a sign"]
        >>> mm.combinations.weighted_sum(weights={"hps": 2.0, "ocr": 0.5})(parts, group, prompts).tolist()
        [1.0, nan]
        >>> mm.combinations.weighted_sum(missing="rest")(parts, group, prompts).tolist()  # 2 / 1 times the one that is there
        [1.25, 1.0]
    """
    refuse_missing("weighted_sum", missing)
    if weights and not any(weights.values()):
        raise UserError(f"weighted_sum.weights: got {dict(weights)}, of which nothing can be learned; takes a weight other than 0")

    def of(parts: Parts, rows: Rows) -> Tensor:
        names = chosen("weighted_sum", "weights", weights, parts)
        chosen("weighted_sum", "required", required or names, parts)
        by_name = dict.fromkeys(names, 1.0) if weights is None else weights
        return _sum(parts, by_name, missing=missing, required=required)

    return replace(combination("weighted_sum", transforms, of), weights=dict(weights or {}))


def normalised_sum(*, weights: Weights | None = None, over: Literal["group", "batch"] = "group", missing: Missing = "row") -> Combination:
    """Each reward by its own mean and spread, then the weighted sum: none is drowned because its scale is small.

    ``sum_k w_k z(r_k)``, z over the row's group or the batch; what the method ``gdpo`` does inside, for methods that take one reward.
    over: the rows whose mean and spread they are.
    Paper: GDPO, https://arxiv.org/abs/2601.05242. Deviations: no second normalisation over the batch: methods have their own.
    """
    refuse_missing("normalised_sum", missing)
    step = z_score(over=over)

    def of(parts: Parts, rows: Rows) -> Tensor:
        names = chosen("normalised_sum", "weights", weights, parts)
        scaled = {name: step.of(parts[name], rows, None) for name in names}
        return _sum(scaled, dict.fromkeys(names, 1.0) if weights is None else weights, missing=missing)

    return combination("normalised_sum", None, of)


def harmonic(
    *, weights: Mapping[str, Positive] | None = None, transforms: Transforms | None = None, missing: Missing = "row"
) -> Combination:
    """``sum_k w_k / sum_k (w_k / r_k)``, of rewards of 0 or more: near the smallest one, so that no reward makes up for another.

    With two weights ``lambda`` and ``1 - lambda`` on similarity to the subject and on fit to the prompt it is the lambda-harmonic reward.
    A reward of 0 makes it 0. A negative one is refused: UserError.
    Paper: Subject-driven Text-to-Image Generation via Preference-based Reinforcement Learning, https://arxiv.org/abs/2407.12164.

    Examples:
        >>> parts = {"subject": torch.tensor([0.5, 1.0, 1.0]).double(), "prompt": torch.tensor([0.5, 0.5, 0.0]).double()}
        >>> mm.combinations.harmonic()(parts, torch.tensor([0, 0, 0]), ["a dog"] * 3)  # 2 / (1 + 2) = 2/3
        tensor([0.5000, 0.6667, 0.0000], dtype=torch.float64)
    """
    refuse_missing("harmonic", missing)
    if weights is not None and not all(weight > 0 for weight in weights.values()):
        raise UserError(f"harmonic.weights: got {dict(weights)}, takes numbers above 0")

    def of(parts: Parts, rows: Rows) -> Tensor:
        names = chosen("harmonic", "weights", weights, parts)
        scores, known = table(parts, names)
        if bool((scores < 0).any()):
            low = next(name for name, values in zip(names, scores, strict=True) if bool((values < 0).any()))
            raise UserError(f"harmonic: {low} has scores below 0; takes rewards of 0 or more")
        weight = scores.new_tensor([1.0 if weights is None else weights[name] for name in names])[:, None] * known
        zero = (known & (scores == 0)).any(0)
        mean = weight.sum(0) / (weight / torch.where(scores > 0, scores, torch.ones_like(scores))).sum(0).clamp(min=1e-300)
        return or_missing(torch.where(zero, torch.zeros_like(mean), mean), usable(known, missing))

    return combination("harmonic", transforms, of)


def worst(*, of: Sequence[str] | None = None, transforms: Transforms | None = None, missing: Missing = "row") -> Combination:
    """``min_k r_k``: worst-case optimisation, of rewards of one scale (WCO, https://arxiv.org/abs/2310.02743).

    of: names of the rewards; all by default.

    Examples:
        >>> parts = {"a": torch.tensor([1.0, 4.0]).double(), "b": torch.tensor([2.0, 3.0]).double()}
        >>> mm.combinations.worst()(parts, torch.tensor([0, 0]), ["x", "x"]).tolist()
        [1.0, 3.0]
    """
    refuse_missing("worst", missing)

    def least(parts: Parts, rows: Rows) -> Tensor:
        scores, known = table(parts, chosen("worst", "of", of, parts))
        smallest = torch.where(known, scores, torch.full_like(scores, math.inf)).amin(0)
        there = usable(known, missing)
        return or_missing(torch.where(there, smallest, torch.zeros_like(smallest)), there)

    return combination("worst", transforms, least)


def lower_bound(
    *, of: Sequence[str] | None = None, k: NotNegative = 1.0, spread: Literal["std", "variance"] = "std", unbiased: bool = False,
    transforms: Transforms | None = None, missing: Missing = "row",
) -> Combination:  # fmt: skip
    """``mean_k r_k - k * std_k r_k``: an ensemble's mean, less where its members disagree.

    of: names of the rewards; all by default. k: how much of their disagreement is taken off, 0 or more.
    spread: ``variance`` is uncertainty-weighted optimisation, ``mean - k * variance``. unbiased: divide by n - 1; public code of UWO has
    it both ways in one repository (numpy's n, torch's n - 1), which are 1.56 and 2.33 on rewards of 1, 2 and 4.
    Paper: Reward Model Ensembles Help Mitigate Overoptimization (UWO), https://arxiv.org/abs/2310.02743.

    Errors: UserError for settings out of range.

    Examples:
        >>> parts = {"a": torch.tensor([1.0, 2.0]).double(), "b": torch.tensor([3.0, 2.0]).double()}
        >>> mm.combinations.lower_bound(k=0.5)(parts, torch.tensor([0, 0]), ["x", "x"]).tolist()  # 2 - 0.5 * 1
        [1.5, 2.0]
    """
    refuse_missing("lower_bound", missing)
    if k < 0 or spread not in ("std", "variance"):
        raise UserError(f"lower_bound: got k={k}, spread={spread!r}, takes k of 0 or more, and std or variance")

    def below(parts: Parts, rows: Rows) -> Tensor:
        scores, known = table(parts, chosen("lower_bound", "of", of, parts))
        count = known.sum(0)
        mean = scores.sum(0) / count.clamp(min=1)
        squares = ((scores - mean) ** 2 * known).sum(0)
        variance = squares / (count - int(unbiased)).clamp(min=1)
        apart = variance if spread == "variance" else torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt() * (variance > 0)
        return or_missing(mean - k * apart, usable(known, missing))

    return combination("lower_bound", transforms, below)


def pessimistic(
    *, of: Sequence[str] | None = None, beta: Positive, transforms: Transforms | None = None, missing: Missing = "row"
) -> Combination:
    """``-beta log mean_k exp(-r_k / beta)``: between the mean (beta to infinity) and the worst (beta to 0) of an ensemble.

    of: names of the rewards; all by default. beta: in units of the reward, above 0.
    The second order of it in 1 / beta is ``mean - variance / (2 beta)``.
    Paper: A Unifying Lens on Reward Uncertainty in RLHF, https://arxiv.org/abs/2606.09073.

    Errors: UserError for a beta that is not above 0.
    """
    refuse_missing("pessimistic", missing)
    if beta <= 0:
        raise UserError(f"pessimistic.beta: got {beta}, takes a number above 0, in units of the reward")

    def soft(parts: Parts, rows: Rows) -> Tensor:
        scores, known = table(parts, chosen("pessimistic", "of", of, parts))
        there = usable(known, missing)
        exponents = torch.where(known | ~there, -scores / beta, torch.full_like(scores, -math.inf))
        return or_missing(-beta * (exponents.logsumexp(0) - known.sum(0).clamp(min=1).to(scores).log()), there)

    return combination("pessimistic", transforms, soft)


def nominal_and_worst(
    *, nominal: str, share: Proportion, of: Sequence[str] | None = None, transforms: Transforms | None = None
) -> Combination:
    """``share * r_nominal + (1 - share) * min_k r_k``: mostly the reward that is trusted, and partly the worst of an ensemble.

    nominal: name of the reward that is trusted. share: of it, 0 to 1.
    of: the ensemble; all rewards, the nominal one included, by default. A row without one of them has no reward.
    Paper: Reward-Robust RLHF in LLMs, https://arxiv.org/abs/2409.15360.

    Errors: UserError for a share outside of 0..1, and a nominal reward that is not there.
    """
    _refuse_share("nominal_and_worst", share)

    def both(parts: Parts, rows: Rows) -> Tensor:
        chosen("nominal_and_worst", "nominal", [nominal], parts)
        least = torch.stack([parts[name] for name in chosen("nominal_and_worst", "of", of, parts)]).amin(0)  # NaN stays NaN
        return share * parts[nominal] + (1 - share) * least

    return combination("nominal_and_worst", transforms, both)


def bayesian(
    *, heads: Mapping[str, str], nominal: Literal["certain", "mean"] = "certain", share: Proportion = 1.0, k: NotNegative = 0.0,
    missing: Missing = "row",
) -> Combination:  # fmt: skip
    """Heads that say how sure they are: ``share * nominal + (1 - share) * min_k (mu_k - k sigma_k)``.

    heads: name of a mean -> name of its standard deviation, such as ``{hps/mu: hps/sigma}`` of ``hpsv3``. nominal: the mean of the head
    with the smallest deviation, row by row; or the mean of all, each by its precision ``1 / sigma^2``. share: of the nominal, 0 to 1.
    k: deviations that are taken off a mean, 0 or more. Where ``share`` is 1 and ``k``
    above 0, k of the nominal's own deviation is taken off it: a lower confidence bound.
    Paper: Reward-Robust RLHF in LLMs (Bayesian reward model ensembles), https://arxiv.org/abs/2409.15360; that its nominal reward is
    the most certain head's is as recalled.

    Errors: UserError for settings out of range, and heads that are not there.
    """
    refuse_missing("bayesian", missing)
    _refuse_share("bayesian", share)
    if not heads or k < 0 or nominal not in ("certain", "mean"):
        raise UserError(f"bayesian: got heads={dict(heads)}, k={k}, nominal={nominal!r}, takes one head or more, k >= 0, certain or mean")

    def of(parts: Parts, rows: Rows) -> Tensor:
        means, known = table(parts, chosen("bayesian", "heads", heads, parts))
        sigmas, sure = table(parts, chosen("bayesian", "heads", heads.values(), parts))
        if bool((sigmas < 0).any()):
            raise UserError("bayesian.heads: got a standard deviation below 0")
        known = known & sure
        there = usable(known, missing)
        precision = torch.where(known, 1 / sigmas.clamp(min=1e-12) ** 2, torch.zeros_like(sigmas))
        surest = torch.where(known, sigmas, torch.full_like(sigmas, math.inf)).argmin(0, keepdim=True)
        one_hot = torch.zeros_like(means).scatter_(0, surest, 1.0)
        weight = one_hot if nominal == "certain" else precision / precision.sum(0).clamp(min=1e-300)
        doubt = sigmas.gather(0, surest)[0] if nominal == "certain" else precision.sum(0).clamp(min=1e-300).rsqrt()
        middle = (weight * means).sum(0) - (k * doubt if share == 1 else 0.0)
        least = torch.where(known, means - k * sigmas, torch.full_like(means, math.inf)).amin(0)
        least = torch.where(there, least, torch.zeros_like(least))
        return or_missing(share * middle + (1 - share) * least, there)

    return combination("bayesian", None, of)


def gated(
    *, gates: Mapping[str, Finite], otherwise: Finite, weights: Weights | None = None, transforms: Transforms | None = None
) -> Combination:
    """The weighted sum of the other rewards where every gate is at its least or above, ``otherwise`` where one is below.

    gates: name -> least score, taken before any transform of that name. otherwise: what a row gets that a gate stops. weights: of
    the rewards that are summed; all that are no gates, with 1, by default. A row that one known gate stops is stopped, whatever is
    missing; else a missing gate, or a missing reward, leaves it without one.

    Examples:
        >>> parts = {"safe": torch.tensor([0.9, 0.1]).double(), "nice": torch.tensor([0.25, 8.0]).double()}
        >>> mm.combinations.gated(gates={"safe": 0.5}, otherwise=-1.0)(parts, torch.tensor([0, 0]), ["x", "x"]).tolist()
        [0.25, -1.0]
    """
    if not gates or not math.isfinite(otherwise):
        raise UserError(f"gated: got gates={dict(gates)}, otherwise={otherwise}, takes one gate or more, and a finite number")
    chain = Chain("gated", transforms)

    def of(parts: Parts, rows: Rows) -> Tensor:
        chosen("gated", "gates", gates, parts)
        names = chosen("gated", "weights", [name for name in parts if name not in gates] if weights is None else weights, parts)
        total = _sum(chain.apply(parts, rows), dict.fromkeys(names, 1.0) if weights is None else weights)
        stopped = torch.stack([parts[name] < least for name, least in gates.items()]).any(0)
        unknown = torch.stack([parts[name].isnan() for name in gates]).any(0)
        return torch.where(stopped, torch.full_like(total, otherwise), or_missing(total, ~unknown))

    return Combination("gated", of, chain)


def lexicographic(*, order: Mapping[str, NotNegative]) -> Combination:
    """In 0..1: the part of its group's other rows that a row beats, by the most important reward in which the two differ enough.

    order: name -> margin, the most important first. Two rows are compared by the first reward whose scores are more than its margin
    apart; a tie, one half, where none is. A pair that gets to a missing score says nothing of either row, and a row that was
    compared with none has no reward.
    Paper: Deep Reinforcement Learning from Hierarchical Weak Preference Feedback (HERON), https://arxiv.org/abs/2309.02632.
    Deviations: the paper trains a reward model on such comparisons; here their mean over the group is the reward.

    Errors: UserError for margins below 0.

    Examples:
        >>> parts = {"right": torch.tensor([1.0, 1.0, 0.0]).double(), "short": torch.tensor([0.25, 0.75, 1.0]).double()}
        >>> mm.combinations.lexicographic(order={"right": 0.5, "short": 0.0})(parts, torch.tensor([0, 0, 0]), ["x"] * 3).tolist()
        [0.5, 1.0, 0.0]
    """
    if not order or not all(margin >= 0 for margin in order.values()):
        raise UserError(f"lexicographic.order: got {dict(order)}, takes name -> margin of 0 or more, the most important first")

    def of(parts: Parts, rows: Rows) -> Tensor:
        names = chosen("lexicographic", "order", order, parts)
        size = len(rows.group)
        beats = torch.full((size, size), 0.5, dtype=torch.float64)
        decided = torch.zeros((size, size), dtype=torch.bool)
        for name in names:
            ahead = parts[name][:, None] - parts[name][None, :]
            lost = ahead.isnan() & ~decided
            now = (ahead.abs() > order[name]) & ~decided
            beats = torch.where(now, (ahead > 0).double(), torch.where(lost, torch.full_like(beats, math.nan), beats))
            decided = decided | now | lost
        same = rows.group[:, None] == rows.group[None, :]
        same.fill_diagonal_(False)
        known = same & ~beats.isnan()
        return or_missing(torch.where(known, beats, torch.zeros_like(beats)).sum(1) / known.sum(1).clamp(min=1), known.any(1))

    return combination("lexicographic", None, of)


def mixture_of_judges(
    *, reward: str, judges: Sequence[str] = (), tasks: Mapping[str, Mapping[str, Any]] | None = None, least: Finite = 0.5,
    violated: Finite = 0.0, transforms: Transforms | None = None,
) -> Combination:  # fmt: skip
    """The reward where every judge of the prompt's task is satisfied, ``violated`` where one is not.

    Args:
        reward: a name; calibrated, for instance by ``transforms: {NAME: {use: log_sigmoid, reference: ...}}`` or ``calibrated``.
        judges: names of rewards that constrain every prompt. least: the score at which a judge is satisfied.
        tasks: name -> ``{prompts: regular expression, judges: [names], reward: name}``: the first whose expression is found in the
            prompt says who else judges it, and, where it has one, which reward it gets. violated: what a violation gets.

    A row that a known judge objects to is violated, whatever is missing; else a missing judge leaves it without a reward.
    Paper: The Perfect Blend: Redefining RLHF with Mixture of Judges (CGPO), https://arxiv.org/abs/2409.20370: the reward of its
    CRPG, to which violated rows give nothing. Deviations: its two other optimisers, and dropping rows by their KL, belong to methods.
    Errors: UserError for names that are not there, and tasks of another shape.
    """
    chain = Chain("mixture_of_judges", transforms)
    known_tasks = [(_task(name, task), task) for name, task in (tasks or {}).items()]
    if not judges and not known_tasks:
        raise UserError("mixture_of_judges: takes judges, or tasks with judges")

    def of(parts: Parts, rows: Rows) -> Tensor:
        everyone = [*judges, *(judge for _, task in known_tasks for judge in task.get("judges", ()))]
        chosen("mixture_of_judges", "judges", everyone, parts)
        scaled, values = chain.apply(parts, rows), []
        for row, prompt in enumerate(rows.prompts):
            task = next((task for match, task in known_tasks if match.search(question(prompt))), {})
            name = task.get("reward", reward)
            chosen("mixture_of_judges", "reward", [name], parts)
            verdicts = [float(parts[judge][row]) for judge in (*judges, *task.get("judges", ()))]
            value = scaled[name][row]
            if any(score < least for score in verdicts):
                value = torch.full_like(value, violated)
            elif any(math.isnan(score) for score in verdicts):
                value = torch.full_like(value, math.nan)
            values.append(value)
        return torch.stack(values)

    return Combination("mixture_of_judges", of, chain)


def _sum(parts: Parts, weights: Weights, *, missing: Missing = "row", required: Sequence[str] = ()) -> Tensor:
    names = [name for name in weights if weights[name] != 0] or list(weights)
    scores, known = table(parts, names)
    weight = scores.new_tensor([weights[name] for name in names])[:, None]
    there = usable(known, missing)
    for name in required:
        there = there & ~parts[name].isnan()
    present = (weight.abs() * known).sum(0)
    return or_missing((weight * scores).sum(0) * torch.where(present > 0, weight.abs().sum() / present.clamp(min=1e-300), 0.0), there)


def _task(name: str, task: Mapping[str, Any]) -> re.Pattern[str]:
    known = {"prompts", "judges", "reward"}
    if not isinstance(task, Mapping) or "prompts" not in task or not set(task) <= known:
        raise UserError(f"mixture_of_judges.tasks.{name}: got {task!r}, takes {{prompts: EXPRESSION, judges: [NAMES], reward: NAME}}")
    try:
        return re.compile(str(task["prompts"]))
    except re.error as error:
        raise UserError(f"mixture_of_judges.tasks.{name}.prompts: {task['prompts']!r} is no regular expression: {error}") from error


def _refuse_share(owner: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"{owner}.share: got {share}, takes 0 to 1")
