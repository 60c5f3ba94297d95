"""What each step of a row earned: rewards of single steps, returns, and advantages by a critic; ``[B, T]`` float64, no gradient.

A scalar reward arrives at a row's last live step. Dead cells (padding, what a tool answered) are skipped: they earn nothing, no time
passes in them, and they hold 0. So does a row whose reward is missing (NaN): ``known`` says which cells count.

What is needed of a rollout's steps stands in ``Feedback.tables`` (``mask``, ``old``, ``refs:NAME``, ``value``, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import COLLISION, MASK, OLD, refs
from mmalign.objectives.parts import Reading, live, read
from mmalign.types import Feedback, UserError


def known(feedback: Feedback) -> Tensor:
    """``[B, T]`` bool: live cells of rows whose reward is known."""
    return read(feedback, MASK) & ~feedback.rewards.isnan()[:, None]


def _last(mask: Tensor) -> Tensor:
    """``[B, T]`` bool: each row's last live cell."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)


def at_end(rewards: Tensor, mask: Tensor) -> Tensor:
    """Rewards of rows ``[B]`` at their last live cell; NaN becomes 0."""
    return live(rewards.nan_to_num(0.0)[:, None].expand(mask.shape), _last(mask))


def kl(feedback: Feedback, *, name: str = "ref") -> Tensor:
    """``log pi_old - log ref`` of each sampled step, nats: k1, which in a reward is unbiased. Reads ``mask, old, refs:NAME``."""
    return live(read(feedback, OLD) - read(feedback, refs(name)), known(feedback))


def shaped(beta: float) -> Reading:
    """``r - beta (log pi_old - log ref)`` of whole rows, ``[B]``; NaN stays."""
    plain = Reading(lambda feedback: feedback.rewards.detach().double())
    if not beta:
        return plain
    return Reading(lambda feedback: plain.of(feedback) - beta * kl(feedback).sum(1), frozenset({MASK, OLD, refs("ref")}))


def to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """``G_t = sum_{s >= t} gamma^(s - t) r_s`` over live steps.

    gamma: discount of a step, 0 to 1.

    Examples:
        >>> to_go(torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[True, True, True]]), gamma=0.5).tolist()  # 0 + (2 + 4 / 2) / 2, ...
        [[2.0, 4.0, 4.0]]
    """
    running, later = rewards.new_zeros(len(rewards)), torch.zeros_like(rewards)
    for step in reversed(range(rewards.shape[1])):
        inside = mask[:, step]
        running = torch.where(inside, rewards[:, step] + gamma * running, running)
        later[:, step] = live(running, inside)
    return later


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """``A_t = sum_{s >= t} (gamma lam)^(s - t) [r_s + gamma V_{s+1} - V_s]`` (arXiv 1506.02438, eq. 16); V is 0 after the last step.

    Values and time differences of dead cells are skipped, as in verl.

    values: ``[B, T]``, what the critic says at each step. gamma: discount of a step, 0 to 1.

    Examples:
        >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.75]])
        >>> gae(rewards, values, torch.tensor([[True, True]]), gamma=1.0, lam=0.5).tolist()  # 0.75 - 0.5 + (1 - 0.75) / 2, 1 - 0.75
        [[0.375, 0.25]]
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise UserError(f"gamma, lam: got {gamma} and {lam}, takes numbers in 0..1")
    values, advantages = live(values, mask), torch.zeros_like(rewards)
    running, ahead = rewards.new_zeros(len(rewards)), rewards.new_zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        inside = mask[:, step]
        error = rewards[:, step] + gamma * ahead - values[:, step]
        running = torch.where(inside, error + gamma * lam * running, running)
        ahead = torch.where(inside, values[:, step], ahead)
        advantages[:, step] = live(running, inside)
    return advantages


def whitened(advantages: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """``(A - mean) / sqrt(var + eps)`` over live cells of the whole rollout; the unbiased variance, as in verl and TRL."""
    count = mask.sum()
    mean = live(advantages, mask).sum() / count.clamp(min=1)
    variance = (live(advantages - mean, mask) ** 2).sum() / (count - 1).clamp(min=1)
    return live((advantages - mean) / (variance + eps).sqrt(), mask)


def macro(mask: Tensor, *, length: int) -> Tensor:
    """Numbers of macro actions of ``length`` live steps each, ``[B, T]`` float64 from 1; 0 in dead cells. The last may be shorter.

    length: live steps of each.
    """
    if length < 1:
        raise UserError(f"length: got {length}, takes 1 or more steps")
    return live(1.0 + torch.div(mask.cumsum(1) - 1, length, rounding_mode="floor").double(), mask)


def turn(mask: Tensor) -> Tensor:
    """Numbers of runs of live steps, ``[B, T]`` float64 from 1; 0 in dead cells: what was said between two replies of an environment.

    Examples:
        >>> turn(torch.tensor([[True, True, False, True]])).tolist()
        [[1.0, 1.0, 0.0, 2.0]]
    """
    begins = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
    return live(begins.cumsum(1).double(), mask)


def falling(surprise: Tensor, mask: Tensor) -> Tensor:
    """Numbers of macro actions in which every live step surprises no more than the one before it, as ``macro`` gives them.

    surprise: ``[B, T]``, minus the log-probability of each step under whoever is asked.

    Examples:
        >>> falling(torch.tensor([[3.0, 2.0, 2.5, 0.5, 9.0]]), torch.tensor([[True, True, True, True, False]])).tolist()
        [[1.0, 1.0, 2.0, 2.0, 0.0]]
    """
    before, count = surprise.new_full((len(surprise),), -torch.inf), surprise.new_zeros(len(surprise))
    number = torch.zeros_like(surprise)
    for step in range(surprise.shape[1]):
        inside = mask[:, step]
        count = count + (inside & (surprise[:, step] > before))
        number[:, step] = live(count, inside)
        before = torch.where(inside, surprise[:, step], before)
    return number


def first(number: Tensor) -> Tensor:
    """``[B, T]`` bool: the first cell of each macro action.

    number: what ``macro`` gives.
    """
    places = torch.arange(number.shape[1], dtype=torch.int64).expand(number.shape)
    index = number.long()
    earliest = torch.full((len(number), number.shape[1] + 1), number.shape[1]).scatter_reduce(1, index, places, "amin")
    return (earliest.gather(1, index) == places) & (number != 0)


def last(number: Tensor) -> Tensor:
    """``[B, T]`` bool: the last cell of each macro action.

    number: what ``macro`` gives.

    Examples:
        >>> last(torch.tensor([[1.0, 1.0, 0.0, 2.0]])).tolist()
        [[False, True, False, True]]
    """
    return first(number.flip(1)).flip(1)


def after(values: Tensor, number: Tensor) -> Tensor:
    """The value of the macro action that follows each cell's own in the row, ``[B, T]``; 0 behind the last one.

    values: ``[B, T]``, that of a macro action at one of its cells, 0 at its others. number: what ``macro`` gives.

    Examples:
        >>> after(torch.tensor([[0.5, 0.0, 9.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0, 2.0]])).tolist()
        [[2.0, 2.0, 0.0, 0.0]]
    """
    index, inside = number.long(), number != 0
    each = values.new_zeros(len(values), values.shape[1] + 2).scatter_add(1, index, live(values, inside))
    return live(each.gather(1, index + 1), inside)


def pooled(values: Tensor, number: Tensor, *, mean: bool) -> Tensor:
    """Sum, or mean, over the steps of a row with one macro action's number, in each of them; differentiable; 0 where that is 0.

    values: ``[B, T]``. number: what ``macro`` gives. mean: or the sum.
    """
    index, inside = number.long(), number != 0
    empty = values.new_zeros(len(values), values.shape[1] + 1)
    total = empty.scatter_add(1, index, live(values, inside))
    if mean:
        total = total / empty.scatter_add(1, index, inside.to(values.dtype)).clamp(min=1)
    return live(total.gather(1, index), inside)


def optimal_baseline(returns: Tensor, feedback: Feedback) -> Tensor:
    """``b_t = sum_i G_it W_it / sum_i W_it`` over a group's rows that are live at column t, ``W_it = sum_{s <= t} w_is``.

    ``w = 1 - 2 p + sum_v p_v^2`` is the squared norm of a step's score in logits: the baseline that makes the variance of the
    gradient least. Reads ``mask, old, collision``.

    returns: ``[B, T]``.
    """
    inside = known(feedback)
    probability = live(read(feedback, OLD), inside).exp()
    energy = live(1 - 2 * probability + live(read(feedback, COLLISION), inside).exp(), inside).clamp(min=0).cumsum(1)
    energy = live(energy, inside)
    names, index = feedback.group.unique(return_inverse=True)
    empty = returns.new_zeros(len(names), returns.shape[1])
    weight = empty.index_add(0, index, energy)
    mean = empty.index_add(0, index, energy * returns) / torch.where(weight > 0, weight, torch.ones_like(weight))
    return live(mean[index], inside)
