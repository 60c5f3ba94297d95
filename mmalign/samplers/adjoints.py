"""The gradient of a reward, carried back through the denoising steps of a sample, one step at a time.

A sample is ``x_T = f_{T-1}(... f_0(x_0))`` with the noise of each step held fixed, step i the number i from the noisiest. With the adjoint
``a_{i+1} = dr / dx_{i+1}`` of step i's outcome, ``a_i = (df_i / dx_i)^T a_{i+1}``, and the reward's gradient by parameters is
``sum_i (df_i / dtheta)^T a_{i+1}``. So no more than one step of the denoiser is ever held for a backward pass, however many are trained:
memory is flat in their number, and costs one pass forward and back for each step that is gone through, and one for each that is trained.

A planner says which steps are trained: ``(random [T] bool, rng) -> Plan``, where it is told which steps have noise. Errors: UserError for
numbers that a trajectory has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.samplers.score_differences import Adversary, ScoreDifference
from mmalign.types import UserError


class Plan(NamedTuple):
    """Which steps of a sample a reward's gradient trains.

    trained: ``[T]`` bool, at least one. end: the step whose clean estimate counts as the sample; None: the sample is that of all steps.
    start: the number of the plan's first step among those of a sample that is made in chunks, with a plan for each.
    """

    trained: Tensor
    end: int | None = None
    start: int = 0

    @property
    def last(self) -> int:
        """The step that the reward's gradient arrives at first."""
        return len(self.trained) - 1 if self.end is None else self.end


class RewardGradient(NamedTuple):
    """How a method carries a reward's gradient back through the steps of a sample.

    plan: ``(random [T] bool, rng) -> Plan``, anew for each rollout. utility: rewards ``[B]`` -> what is maximised, ``[B]``; None: no
    reward's gradient is asked for. differences: of scores, and adversaries, which pull the sample too, where its plan ends in a clean
    estimate.
    through: whether the gradient passes through the denoiser's input too; False: along the latent alone. under: the set of parameters
    whose denoiser it passes through. copies: samples that are made of each: with 2 or more, noise of the last step's level is put onto a
    sample, and the last step taken again. subjects: weight of a running cost, of attention that subjects share
    (``samplers.subjects``), summed over steps times their length; 0: there is none. tail: the part of a video's frames, the last ones,
    that differences pull. across: in a video that is made chunk by chunk, whether the gradient passes from a chunk to those that it goes
    on from, for plans without an end, one copy and no differences; False: they are as they were made.
    """

    plan: Callable[[Tensor, torch.Generator], Plan]
    utility: Callable[[Tensor], Tensor] | None
    through: bool = True
    under: str = "current"
    copies: int = 1
    differences: tuple[ScoreDifference | Adversary, ...] = ()
    subjects: float = 0.0
    tail: float = 1.0
    across: bool = False

    def at(self, step: int) -> RewardGradient:
        """What it is at a step of training."""
        return self._replace(differences=tuple(difference.at(step) for difference in self.differences))


Under = Callable[[], AbstractContextManager[None]]
Planner = Callable[[Tensor, torch.Generator], Plan]


def last(count: Count | None, *, noisy: bool = False) -> Planner:
    """The last ``count`` steps, or all (None): DRaFT-K. noisy: of these, those that have noise."""

    def plan(random: Tensor, rng: torch.Generator) -> Plan:
        num_steps = len(random)
        many = num_steps if count is None else count
        _refuse(many > num_steps, f"method.last_steps: got {many}, takes up to the {num_steps} steps of policy.schedule, or null for all")
        late = torch.arange(num_steps) >= num_steps - many
        price = "a step without noise has no KL, and none of the last"
        _refuse(noisy and not bool((late & random).any()), f"method.beta: {price} {many} has any; takes 0, or a kernel with noise")
        return Plan(late & random if noisy else late)

    return plan


def some_last(low: Count, high: Count | None) -> Planner:
    """The last K steps, K drawn anew for each rollout, as likely one number from ``low`` to ``high`` (None: all) as another: AlignProp."""

    def plan(random: Tensor, rng: torch.Generator) -> Plan:
        num_steps = len(random)
        most = num_steps if high is None else high
        _refuse(most > num_steps or low > most, f"method.low, high: got {low} and {most}, takes low <= high <= {num_steps}")
        many = low + int(torch.randint(most - low + 1, (), generator=rng))
        return Plan(torch.arange(num_steps) >= num_steps - many)

    return plan


def spaced(count: Count, early: Count) -> Planner:
    """``count`` steps as far apart as they fit, from a random first one on; the sample ends, as the clean estimate, at one of the last
    ``early`` steps (0 and 1 from the end for 2; 1 is the last step's): DRTune."""

    def plan(random: Tensor, rng: torch.Generator) -> Plan:
        num_steps = len(random)
        _refuse(count > num_steps, f"method.count: got {count}, takes up to the {num_steps} steps of policy.schedule")
        _refuse(early > num_steps, f"method.early: got {early}, takes up to the {num_steps} steps of policy.schedule")
        apart = num_steps // count
        first = int(torch.randint(num_steps - (count - 1) * apart, (), generator=rng))
        end = num_steps - 1 - int(torch.randint(early, (), generator=rng))
        trained = torch.zeros(num_steps, dtype=torch.bool)
        trained[first : first + count * apart : apart] = True
        trained &= torch.arange(num_steps) <= end
        trained[end] |= not bool(trained.any())  # with few steps, all of them may lie behind the end
        return Plan(trained, end)

    return plan


def some_random(count: Count | None) -> Planner:
    """``count`` of the steps that have noise, drawn anew for each rollout, or all of them (None)."""

    def plan(random: Tensor, rng: torch.Generator) -> Plan:
        noisy = torch.nonzero(random).flatten()
        takes = "takes a kernel with noise (flow_sde with noise_level 1.414, or ddim with eta 1, leaves no memory of the first latent)"
        _refuse(not len(noisy), f"policy.schedule: none of {len(random)} steps is random; this method {takes}")
        _refuse(
            (count or 1) > len(noisy), f"method.count: got {count}, takes up to the {len(noisy)} steps that are random, or null for all"
        )
        chosen = noisy if count is None else noisy[torch.randperm(len(noisy), generator=rng)[:count]]
        return Plan(torch.isin(torch.arange(len(random)), chosen))

    return plan


def one_of(low: Count, high: Count | None) -> Planner:
    """One step, as likely one of those numbered ``low`` to ``high`` (None: the last) from 1 as another, whose clean estimate is the
    sample: ReFL."""

    def plan(random: Tensor, rng: torch.Generator) -> Plan:
        num_steps = len(random)
        most = num_steps if high is None else high
        _refuse(not low <= most <= num_steps, f"method.low, high: got {low} and {most}, takes low <= high <= {num_steps}, from 1")
        end = low - 1 + int(torch.randint(most - low + 1, (), generator=rng))
        return Plan(torch.arange(num_steps) == end, end)

    return plan


def by_chunk(plan: Planner, random: Tensor, chunk: Tensor, rng: torch.Generator) -> list[Plan]:
    """A plan for each chunk of a sample, one after the other. random: ``[T]`` bool; chunk: ``[T]``, which one each step makes.

    Examples:
        >>> plans = by_chunk(last(1), torch.tensor([True] * 5), torch.tensor([0, 0, 0, 1, 1]), torch.Generator())
        >>> [(plan.start, plan.trained.tolist()) for plan in plans]
        [(0, [False, False, True]), (3, [False, True])]
    """
    counts = chunk.unique_consecutive(return_counts=True)[1].tolist()
    plans = [plan(own, rng) for own in random.split(counts)]
    return [each._replace(start=sum(counts[:number])) for number, each in enumerate(plans)]


def carried_back(
    plan: Plan, gradient: Tensor, states: Callable[[int], Tensor], answer: Callable[[int, Tensor], Tensor], under: Under = nullcontext,
    running: Callable[[int], Tensor] | None = None,
) -> Mapping[int, Tensor]:  # fmt: skip
    """Trained step -> the adjoint of its outcome, ``[R, ...]``.

    gradient: the reward's by the sample, which is the outcome of step ``plan.end``. states: step -> the latent that it began with.
    answer: ``(step, latent) -> outcome`` with a graph from the latent on. under: the parameters that it is asked of, and gone back through.
    running: step -> the derivative, by the latent that it began with, of what is gained there on the way.
    """
    trained = torch.nonzero(plan.trained).flatten().tolist()
    adjoints, adjoint = dict[int, Tensor](), gradient
    for step in range(plan.last, trained[0] - 1, -1):
        if step in trained:
            adjoints[step] = adjoint
        if step > trained[0]:
            with under(), torch.enable_grad():
                leaf = states(step).detach().requires_grad_()
                outcome = answer(step, leaf)
                (adjoint,) = torch.autograd.grad(outcome, leaf, adjoint.to(outcome))
                if running is not None:
                    adjoint = adjoint + running(step).to(adjoint)
    return adjoints


def of_reward(utility: Callable[[Tensor], Tensor], sample: Tensor) -> Tensor:
    """``d sum utility / d sample``; rows whose reward is missing (NaN), or whose gradient is not finite, have none: 0.

    utility: sample -> ``[R]``, with its graph.
    """
    with torch.enable_grad():
        leaf = sample.detach().requires_grad_()
        values = utility(leaf)
        known = ~values.isnan()
    (gradient,) = torch.autograd.grad(torch.where(known, values, 0.0).sum(), leaf)
    sound = known.to(gradient.device) & gradient.flatten(1).isfinite().all(1)
    return torch.where(sound.reshape(-1, *(1,) * (gradient.ndim - 1)), gradient, 0.0)


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise UserError(message)
