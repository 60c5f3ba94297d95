"""Steps of a pipeline's rollout, played again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from mmalign.policies.pipelines.calls.calling import Caller
from mmalign.policies.pipelines.calls.interception import Finished, held
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.policies.pipelines.rollouts.trajectories import Trajectories, Transition
from mmalign.samplers import kernels
from mmalign.types import Kernel, Rollout, UserError


class Played(Protocol):
    """What a replay needs of a policy: the pipeline, its caller, and the kernel; whose parameters are in place is the policy's affair.

    order: of the steps without noise, as they are recorded; a trained step has noise, and is played again without it.
    """

    pipe: Any
    caller: Caller
    kernel: Kernel
    order: int
    rows_at_once: int

    def using(self, name: str) -> Any:
        """A set of parameters in place of the current one."""
        ...


def in_calls(rollout: Rollout, rows: Tensor, most: int) -> Iterator[Tensor]:
    """Rows in parts that one call can take: at most so many, whose prompts were encoded together."""
    for run in rows.split(rollout.held.which[rows].unique_consecutive(return_counts=True)[1].tolist()):
        yield from run.split(most)


def transition(policy: Played, rollout: Rollout, rows: Tensor, column: int, x: Tensor | None = None) -> Transition:
    """One recorded step, in calls no larger than those of the rollout; all rows of a step share their std.

    x: ``[B, ...]`` of all rows of the rollout, where the step begins elsewhere than it did.
    """
    calls = in_calls(rollout, rows, policy.rows_at_once)
    parts = [transition_at_once(policy, rollout, part, column, None if x is None else at_work(policy, part, x)) for part in calls]
    whole = parts[0]._asdict() | {name: torch.cat([part._asdict()[name] for part in parts]) for name in ("mean", "log_probs", "clean")}
    return Transition(**whole)


def transition_at_once(
    policy: Played, rollout: Rollout, rows: Tensor, column: int, x: Tensor | None = None, *, through: bool = True,
    ends: Tensor | None = None,
) -> Transition:  # fmt: skip
    """One recorded step under the current parameters, of rows whose prompts were encoded together.

    x: ``[R, ...]``, where the step begins elsewhere than it did, with a graph where it has one; not for the first step, whose latent the
    pipeline makes. through: whether the denoiser's output has a graph. ends: ``[chunks, R, ...]`` of a video's chunks before that of the
    step, in place of what they became, with a graph.
    """
    trajectories: Trajectories = rollout.held
    there = partial(at_work, policy, rows)
    begun, moments = there(trajectories.x[column]) if x is None else x, list[Moment]()
    others = {} if x is None else {column - 1: begun}
    others |= {} if ends is None else {trajectories.steps_of(chunk)[-1]: end for chunk, end in enumerate(ends)}

    def answer(moment: Moment) -> Tensor:
        if moment.column < column:
            return laid_out(others[moment.column] if moment.column in others else there(trajectories.x_next[moment.column]))
        moments.append(moment)
        raise Finished

    prompts, starts = [rollout.prompts[row] for row in rows.tolist()], trajectories.starts[rows].tolist()
    player = Player(answer, lambda number, own: laid_out(there(trajectories.beside[number])))
    with nullcontext() if through else held(policy.caller.denoisers):
        policy.caller.until_finished(prompts, starts, player, _together(rollout, rows), skip=column)
    moment = moments[0]
    worst = float((moment.x.detach().double() - begun.detach().double()).abs().max())
    if worst > 1e-3 * (1 + float(begun.detach().abs().max())):  # an encoder's last bits depend on how many rows it sees
        name = type(policy.pipe).__name__
        raise UserError(f"replay: {name} came to step {column} with another latent than in the rollout (by {worst:.2g})")
    kernel = policy.kernel if bool(trajectories.random[column]) else kernels.ode()  # as when it was recorded
    mean, std = kernel(moment.prediction, moment.x, moment.t, moment.t_next)
    log_probs = kernels.log_prob(there(trajectories.x_next[column]), mean, std)
    return Transition(mean, std, log_probs, moment.prediction.clean, moment.t, moment.t_next)


def decoded(policy: Played, rollout: Rollout, rows: Tensor, x: Tensor, column: int | None = None) -> Tensor:
    """The outputs ``[R, ...]`` in 0..1 of last latents ``x [R, ...]``, with a graph: a whole call in which the denoiser stands still.

    column: the step that ended with these, where the last one did not: the last of a chunk, of a video that is made in several.
    """
    trajectories: Trajectories = rollout.held
    there, steps = partial(at_work, policy, rows), len(trajectories.x)
    place = steps - 1 if column is None else column

    def answer(moment: Moment) -> Tensor:
        return laid_out(x if moment.column == place else there(trajectories.x_next[moment.column]))

    prompts, starts = [rollout.prompts[row] for row in rows.tolist()], trajectories.starts[rows].tolist()
    player = Player(answer, lambda number, own: laid_out(there(trajectories.beside[number])))
    outputs = policy.caller.images(prompts, starts, player, _together(rollout, rows), skip=steps)
    if x.requires_grad and not outputs.requires_grad:
        name = type(policy.pipe).__name__
        raise UserError(f"policy.pipeline: {name} makes its outputs of the latents without a gradient, so no reward's gradient can arrive")
    return outputs


def at_work(policy: Played, rows: Tensor, kept: Tensor) -> Tensor:
    """Some rows of what a rollout keeps on the CPU, where the pipeline works."""
    return kept[rows].to(policy.caller.device())


def laid_out(x: Tensor) -> Tensor:
    """A copy whose memory has the order of its shape. Convolutions take another path, with other last bits, where it has another, so a
    rollout goes on from latents in the layout in which a replay hands them over."""
    return x.clone(memory_format=torch.contiguous_format)


def _together(rollout: Rollout, rows: Tensor) -> list[str]:
    trajectories: Trajectories = rollout.held
    return list(trajectories.together[int(trajectories.which[rows[0]])])
