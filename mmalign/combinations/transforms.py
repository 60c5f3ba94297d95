"""Transforms of one reward, for ``combine: {use: ..., transforms: {NAME: {use: z_score}}}``; or several of them, in a list.

Each takes the scores of a rollout's rows ``[B]`` and returns as many; a missing score (NaN) counts in no statistic, and stays missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, NotNegative, Positive, Proportion
from mmalign.combinations._parts import Rows, Transform, or_missing
from mmalign.conversations import known_by
from mmalign.reference_scores import read_reference
from mmalign.types import UserError

__all__ = ["affine", "calibrated", "clip", "isotonic", "log_sigmoid", "rank", "z_score"]

Over = Literal["group", "batch", "running"]


def z_score(*, over: Over = "group", eps: NotNegative = 1e-6) -> Transform:
    """``(r - mean) / (std + eps)``, std with n - 1, over the row's group, the batch, or everything seen in training (``running``).

    over: the rows whose mean and deviation they are. eps: what is added to the deviation, in units of the reward.

    Equal scores (found by the largest minus the smallest, relative to their size) and a score alone become 0. ``running`` takes a
    rollout in before it is transformed, and its count, mean and squares are in the checkpoint.

    Errors: UserError for settings out of range.

    Examples:
        >>> scaled = mm.combinations.weighted_sum(transforms={"likes": mm.combinations.z_score(eps=0.0)})
        >>> scaled({"likes": torch.tensor([1.0, 2.0, 3.0, 5.0]).double()}, torch.tensor([0, 0, 0, 1]), ["x"] * 4).tolist()  # 5 is alone
        [-1.0, 0.0, 1.0, 0.0]
    """
    _refuse_over("z_score", over, ("group", "batch", "running"))
    if eps < 0:
        raise UserError(f"z_score.eps: got {eps}, takes 0 or more")

    def of(scores: Tensor, rows: Rows, state: Any) -> Tensor:
        if over == "running":
            return (scores - state.mean) / (state.std + eps) if state.count else scores * 0
        return _by(over, scores, rows, lambda known: _standard(known, eps))

    return Transform("z_score", of, Moments if over == "running" else None)


def rank(*, over: Literal["group", "batch"] = "group") -> Transform:
    """The part of the other rows that a row is better than, a tie counting one half: 0 for the worst, 1 for the best; 1/2 alone.

    over: the rows that a row is compared with.

    Only the order counts, so that no outlier and no scale does.

    Errors: UserError for another ``over``.

    Examples:
        >>> ranked = mm.combinations.weighted_sum(transforms={"likes": mm.combinations.rank()})
        >>> ranked({"likes": torch.tensor([10.0, 900.0, 10.0]).double()}, torch.tensor([0, 0, 0]), ["x"] * 3).tolist()
        [0.25, 1.0, 0.25]
    """
    _refuse_over("rank", over, ("group", "batch"))

    def of(scores: Tensor, rows: Rows, state: Any) -> Tensor:
        return _by(over, scores, rows, _ranks)

    return Transform("rank", of)


def clip(*, low: Finite | None = None, high: Finite | None = None) -> Transform:
    """``min(max(r, low), high)``.

    low, high: the bounds; null for none.

    Errors: UserError for neither bound, and for low above high.
    """
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        raise UserError(f"clip: got low={low}, high={high}, takes at least one, and low up to high")
    return Transform("clip", lambda scores, rows, state: or_missing(scores.clamp(low, high), ~scores.isnan()))


def affine(*, scale: Finite = 1.0, shift: Finite = 0.0) -> Transform:
    """``scale * r + shift``: other units, or what was worse as better.

    scale: what a score is multiplied by. shift: what is added then.

    Errors: UserError for a scale of 0.
    """
    if scale == 0 or not math.isfinite(scale) or not math.isfinite(shift):
        raise UserError(f"affine: got scale={scale}, shift={shift}, takes finite numbers, and a scale other than 0")
    return Transform("affine", lambda scores, rows, state: scale * scores + shift)


def log_sigmoid(
    *, center: Finite | None = None, reference: str | None = None, reward: str | None = None, quantile: Proportion = 0.5
) -> Transform:
    """``log sigmoid(r - center)``: what is above the center gains little more, what is below it loses in proportion.

    A sum of such terms is the log-probability that all properties hold, where r is a Bradley-Terry reward: a logical AND.

    Args:
        center: the same for all prompts; or
        reference, reward: the ``quantile`` of that reward's scores of the reference model for each prompt, of a file that the recipe
            ``calibrate`` has written. A prompt that is not in it has no score: NaN.
        quantile: of those scores, that is the center, 0 to 1.

    Paper: Transforming and Combining Rewards for Aligning Large Language Models, https://arxiv.org/abs/2402.00742.
    Errors: UserError for a file that cannot be read, and neither or both of center and reference.
    """
    if (center is None) == (reference is None):
        raise UserError("log_sigmoid: takes either center or reference")
    if not 0 <= quantile <= 1:
        raise UserError(f"log_sigmoid.quantile: got {quantile}, takes 0 to 1")
    references = None if reference is None else _of_reward("log_sigmoid", reference, reward)
    middles = {prompt: float(scores.quantile(quantile)) for prompt, scores in (references or {}).items() if len(scores)}

    def of(scores: Tensor, rows: Rows, state: Any) -> Tensor:
        if center is not None:
            return torch.nn.functional.logsigmoid(scores - center)
        centers = scores.new_tensor([middles.get(known_by(prompt), math.nan) for prompt in rows.prompts])
        return torch.nn.functional.logsigmoid(scores - centers)

    return Transform("log_sigmoid", of)


def calibrated(
    *, reference: str, reward: str | None = None, then: Literal["best_of_n", "worst_of_n"] | None = None, t: Positive = 10.0
) -> Transform:
    """``c = P(r_ref < r) + P(r_ref = r) / 2`` over the reference model's samples of the same prompt, in 0..1; then a transform of it.

    then: ``best_of_n``, ``exp(t c)``, for a policy that will be asked N times and the best answer kept; ``worst_of_n``,
    ``-exp(-t c)``, for one whose worst answer counts; None: c itself, which is best for a win rate with one answer.
    t: of the exponent, above 0.
    reference, reward: a file that the recipe ``calibrate`` has written, and which of its rewards (the only one, where it has one). A
    prompt that is not in it has no score: NaN.

    Paper: InfAlign: Inference-aware language model alignment, https://arxiv.org/abs/2412.19792 (exponential transforms, with positive
    and negative exponent). Deviations: ties count one half (the paper's is ``r_ref <= r``, the same for continuous rewards); t has no
    default of the paper's.

    Errors: UserError for a file that cannot be read, and settings out of range.
    """
    if then not in (None, "best_of_n", "worst_of_n") or t <= 0:
        raise UserError(f"calibrated: got then={then!r}, t={t}, takes best_of_n, worst_of_n or null, and t above 0")
    references = _of_reward("calibrated", reference, reward)

    def of(scores: Tensor, rows: Rows, state: Any) -> Tensor:
        shares = []
        for score, prompt in zip(scores, rows.prompts, strict=True):
            samples = references.get(known_by(prompt), scores.new_empty(0))
            below = (samples < score).double().sum() + (samples == score).double().sum() / 2
            shares.append(below / len(samples) if len(samples) else below * math.nan)
        level = or_missing(torch.stack(shares), ~scores.isnan())
        if then is None:
            return level
        return (t * level).exp() if then == "best_of_n" else -(-t * level).exp()

    return Transform("calibrated", of)


def isotonic(*, path: str, score: str = "score", label: str = "label") -> Transform:
    """A reward as the probability that people agree with it: the best monotone curve through labelled scores.

    score, label: names of the two numbers of a line.
    path: JSON lines with a reward's score under ``score`` and a label in 0..1 under ``label``, such as a judge's marks and people's.
    Scores beyond those of the file get the curve's ends. Least squares, by scikit-learn.

    Errors: UserError with the line's number.
    """
    from sklearn.isotonic import IsotonicRegression

    from mmalign.files import numbers

    scores, labels = numbers("isotonic.path", path, (score, label))
    if len(set(scores)) < 2 or not all(0 <= value <= 1 for value in labels):
        raise UserError(f"isotonic.path: {path}: takes at least two different scores, and labels in 0..1")
    curve = IsotonicRegression(out_of_bounds="clip").fit(scores, labels)

    def of(values: Tensor, rows: Rows, state: Any) -> Tensor:
        known = ~values.isnan()
        probabilities = torch.full_like(values, math.nan)
        if bool(known.any()):
            probabilities[known] = torch.as_tensor(curve.predict(values[known].detach().numpy()), dtype=values.dtype)
        return probabilities

    return Transform("isotonic", of)


class Moments:
    """Count, mean and squares of all scores seen (parallel Welford), of known ones only; a state of ``z_score``."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, scores: Tensor) -> None:
        """Takes in ``[B]``."""
        seen = scores.detach().double()[~scores.isnan()]
        if seen.numel():
            total = self.count + seen.numel()
            apart = float(seen.mean()) - self.mean
            self.squares += float(((seen - seen.mean()) ** 2).sum()) + apart**2 * self.count * seen.numel() / total
            self.mean += apart * seen.numel() / total
            self.count = total

    @property
    def std(self) -> float:
        """With n - 1; 1 where fewer than two scores were seen, or all were equal."""
        deviation = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return deviation if deviation > 1e-9 * max(1.0, abs(self.mean)) else 1.0

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


def _standard(known: Tensor, eps: float) -> Tensor:
    if len(known) < 2 or float((known.max() - known.min()).detach()) <= 1e-6 * float(known.detach().abs().max()):
        return known * 0
    return (known - known.mean()) / (known.std() + eps)


def _ranks(known: Tensor) -> Tensor:
    if len(known) < 2:
        return known * 0 + 0.5
    ahead = (known[:, None] > known[None, :]).double() + (known[:, None] == known[None, :]).double() / 2
    return (ahead.sum(1) - 0.5) / (len(known) - 1)


def _by(over: str, scores: Tensor, rows: Rows, change: Any) -> Tensor:
    """``change`` of the known scores of each group, or of the batch."""
    group = rows.group if over == "group" else torch.zeros_like(rows.group)
    changed = torch.full_like(scores, math.nan)
    for name in group.unique():
        inside = (group == name) & ~scores.isnan()
        if bool(inside.any()):
            changed = changed.masked_scatter(inside, change(scores[inside]))
    return changed


def _of_reward(owner: str, path: str, reward: str | None) -> dict[str, Tensor]:
    return {prompt: torch.tensor(scores, dtype=torch.float64) for prompt, scores in read_reference(owner, path, reward).items()}


def _refuse_over(owner: str, over: str, known: tuple[str, ...]) -> None:
    if over not in known:
        raise UserError(f"{owner}.over: got {over!r}, takes {', '.join(known)}")
