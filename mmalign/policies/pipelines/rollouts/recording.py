"""A pipeline's rollout, recorded, and what stops one at its first steps, before hours are spent on what is no table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.policies.pipelines.calls.calling import Caller
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.policies.pipelines.rollouts.replay import Played, laid_out
from mmalign.policies.pipelines.rollouts.trajectories import Trajectories
from mmalign.samplers import kernels, structure
from mmalign.samplers.multistep import Estimate, carried_on
from mmalign.samplers.windows import Window
from mmalign.types import Kernel, Prediction, UserError

ALL = 10**9  # steps: through all of them the denoiser stands still


@torch.no_grad()
def random_steps(caller: Caller, window: Window, kernel: Kernel, prompt: str) -> Tensor:
    """Which steps of a first rollout are random, ``[T]`` bool: of a whole call in which the denoiser stands still.

    Errors: UserError for a pipeline that asks its scheduler never, or more than once at one time, and for a window that does not fit.
    """
    before, noisy = list[Moment](), list[bool]()

    def answer(moment: Moment) -> Tensor:
        refuse_again(caller.pipe, moment, before)
        nothing = torch.zeros(1, device=moment.x.device)
        noisy.append(bool((kernel(Prediction(nothing, nothing), nothing, moment.t, moment.t_next)[1] > 0).all()))
        return moment.x

    caller.until_finished([prompt], [0], Player(answer), [prompt], skip=ALL)
    refuse_unasked(caller.pipe, noisy)
    starts = [moment for number, moment in enumerate(before) if not number or moment.chunk != before[number - 1].chunk]
    trained = [structure.masks(window, None, moment.left, 0, torch.Generator().manual_seed(0))[1] for moment in starts]
    return torch.cat(trained)[: len(noisy)] & torch.tensor(noisy)


def generator_at(state: Tensor) -> torch.Generator:
    """A generator that goes on from a state."""
    rng = torch.Generator()
    rng.set_state(state)
    return rng


class Rows(NamedTuple):
    """Rows of a call: their prompts, seeds of their first latents (``starts``) and of the noise of their steps, and the prompts that are
    encoded at once."""

    prompts: list[str]
    starts: list[int]
    seeds: list[int]
    together: list[str]

    def take(self, at: Tensor) -> Rows:
        """Some of them. at: ``[R]`` int64."""
        places = at.tolist()
        starts, seeds = ([values[place] for place in places] for values in (self.starts, self.seeds))
        return Rows([self.prompts[place] for place in places], starts, seeds, self.together)


class Begun(NamedTuple):
    """What rows take over from the trunks that they leave at ``step``.

    x_next: ``[step, R, ...]`` what was answered before it; beside: what schedulers of further streams answered up to it, ``[R, ...]`` each.
    mean, std: ``[R, ...]`` of that step itself. end: the step whose clean estimate is the rows' output, the number of steps for none.
    """

    step: int
    x_next: Tensor
    beside: list[Tensor]
    mean: Tensor
    std: Tensor
    end: int


@dataclass
class Tape:
    """What was recorded of the R rows of one call, T steps.

    x, x_next: ``[T, R, ...]`` latents before and after each step. log_probs: ``[R, T]`` of those after trained steps. random, trained:
    ``[R, T]`` bool. dt, std, slope: ``[T]``, see ``types.Steps.facts``. beside: as of ``Trajectories``. gaussians: step -> mean
    ``[R, ...]`` and std of the kernel there, where they were to be kept. chunk: ``[T]``, as of ``Trajectories``.
    """

    x: Tensor
    x_next: Tensor
    log_probs: Tensor
    random: Tensor
    trained: Tensor
    dt: Tensor
    std: Tensor
    slope: Tensor
    beside: list[Tensor]
    gaussians: dict[int, tuple[Tensor, Tensor]]
    outputs: Tensor
    chunk: Tensor


Cells = Callable[[int], tuple[Tensor, Tensor]]
"""Number of steps -> which of them are random, and which trained, ``[R, T]`` bool each."""


def of_rows(window: Callable[[int], tuple[Tensor, Tensor]], rows: int, left: int, *, greedy: bool) -> tuple[Tensor, Tensor]:
    """The masks ``[left]`` of a window as those of so many rows, none of whose steps is random where they are greedy."""
    random, trained = (steps.expand(rows, -1) & (not greedy) for steps in window(left))
    return random, trained


def trained_steps(trained: Tensor) -> Tensor:
    """``[T]`` bool: the steps that are trained in some row of ``trained [R, T]``."""
    return trained.any(0)


def none_of(trained: Tensor) -> Tensor:
    """``[T]`` bool: no step."""
    return torch.zeros_like(trained[0])


class How(NamedTuple):
    """kept: trained ``[R, T]`` -> ``[T]`` bool, the steps of which the kernel's Gaussian is kept. decode: whether anybody sees outputs."""

    kept: Callable[[Tensor], Tensor] = none_of
    decode: bool = True


@torch.no_grad()
def record(policy: Played, rows: Rows, cells: Cells, how: How, *, begun: Begun | None = None) -> Tape:
    """One call of the pipeline, whose scheduler answers with the kernel at random steps and with the ODE's step at others.

    begun: the beginning that all rows take over; the denoiser stands still through it, and behind its end.
    """
    device = policy.caller.device()
    noises = [torch.Generator(device).manual_seed(seed ^ 0x5DEECE66D) for seed in rows.seeds]
    tape: dict[str, list[Any]] = {name: [] for name in ("x", "x_next", "log_probs", "dt", "std", "slope", "beside")}
    random, trained, keep = (torch.zeros(0, dtype=torch.bool),) * 3
    before: Estimate | None = None
    gaussians, asked = dict[int, tuple[Tensor, Tensor]](), list[Moment]()

    def answer(moment: Moment) -> Tensor:
        nonlocal random, trained, keep, before
        if not asked or moment.chunk != asked[-1].chunk:
            refuse_branches(policy.pipe, moment, begun)
            new, before = cells(moment.left), None
            random, trained = (_behind(own, more, len(asked)) for own, more in zip((random, trained), new, strict=True))
            keep = how.kept(trained)
        refuse_again(policy.pipe, moment, asked)
        column = min(moment.column, random.shape[1] - 1)
        mean, std = _gaussian(policy, moment, random[:, column], begun, before)
        if keep[column]:
            whole = bool(random[:, column].all())
            gaussians[column] = (mean, std) if whole else policy.kernel(moment.prediction, moment.x, moment.t, moment.t_next)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=g, device=device) for g in noises])
        x_next = laid_out(kernels.sample(mean, std, noise).to(moment.x.dtype))
        alive = _alive(std, len(noises))
        random[:, column] &= alive
        trained[:, column] &= alive
        seen = policy.order == 2 and (begun is None or moment.column > begun.step)
        before = Estimate(moment.prediction.clean, moment.t, ~random[:, column]) if seen else None
        tape["x"].append(kept(moment.x))
        tape["x_next"].append(kept(x_next))
        tape["log_probs"].append(kernels.log_prob(x_next, mean, std).cpu() * trained[:, column])
        tape["dt"].append((kernels.flow_time(moment.t) - kernels.flow_time(moment.t_next)).double().cpu())
        for name, number in zip(("std", "slope"), kernels.of_step(policy.kernel, moment.t, moment.t_next), strict=True):
            tape[name].append(number.double().cpu())
        return x_next

    def beside(number: int, own: Tensor) -> Tensor:
        if begun is not None and number < len(begun.beside):
            own = begun.beside[number].to(own)
        tape["beside"].append(kept(own))
        return laid_out(own)

    still = {} if begun is None else {"skip": begun.step + 1, "until": begun.end + 1}
    outputs = policy.caller.images(rows.prompts, rows.starts, Player(answer, beside), rows.together, decode=how.decode, **still)  # type: ignore[arg-type]
    refuse_unasked(policy.pipe, tape["x"])
    refuse_shapes(policy.pipe, tape["x"])
    count = len(tape["x"])
    return Tape(
        x=torch.stack(tape["x"]), x_next=torch.stack(tape["x_next"]), log_probs=torch.stack(tape["log_probs"], dim=1),
        random=random[:, :count], trained=trained[:, :count], dt=torch.stack(tape["dt"]), std=torch.stack(tape["std"]),
        slope=torch.stack(tape["slope"]), beside=tape["beside"], gaussians=gaussians, outputs=outputs,
        chunk=torch.tensor([moment.chunk for moment in asked]),
    )  # fmt: skip


def _behind(own: Tensor, more: Tensor, asked: int) -> Tensor:
    """``[R, T]`` of the steps that were asked so far, and those of a new schedule behind them; a copy."""
    return torch.cat([own[:, :asked], more], 1) if asked else more.clone()


def _gaussian(
    policy: Played, moment: Moment, random: Tensor, begun: Begun | None, before: Estimate | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and std of a step; std is 0 in rows that are not ``random [R]``. before: what rows of second order go on from."""
    if begun is not None and moment.column <= begun.step:
        return (begun.mean, begun.std) if moment.column == begun.step else (begun.x_next[moment.column].to(moment.x), torch.zeros(()))
    if begun is not None and moment.column >= begun.end:
        return (moment.prediction.clean if moment.column == begun.end else moment.x), torch.zeros(())
    at = moment.x, moment.t, moment.t_next
    if not bool(random.any()):
        return kernels.ode()(carried_on(moment.prediction, *at, before), *at)
    mean, std = policy.kernel(moment.prediction, *at)
    random = random if before is None else random & _alive(std, len(random))  # a kernel's step without noise is the ODE's
    if not bool(random.all()):
        chosen = random.to(mean.device).reshape(-1, *(1,) * (mean.ndim - 1))
        still, _ = kernels.ode()(carried_on(moment.prediction, *at, before), *at)
        mean, std = torch.where(chosen, mean, still), torch.where(chosen, std, 0.0)
    return mean, std


def _alive(std: Tensor, rows: int) -> Tensor:
    """``[rows]`` bool: where a step's std is above 0 everywhere. std: one for all rows, or ``[rows, ...]``."""
    above = (std > 0).cpu()
    return (above.reshape(len(above), -1).all(1) if above.ndim else above).expand(rows)


def joined(
    tapes: Sequence[Tape], places: Tensor, rows: Rows, *, drift: bool
) -> tuple[Trajectories, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Tapes as one rollout: what it is replayed from, log-probabilities and trained cells ``[B, T]``, outputs, and facts of its steps.

    places: ``[B]`` of the rows of all tapes. rows: of all. drift: whether the means of trained steps were kept.
    """
    order, first, count = places.argsort(), tapes[0], len(places)
    trained = torch.cat([tape.trained for tape in tapes])[order]
    columns = torch.nonzero(trained.any(0)).flatten().tolist()
    held = Trajectories(
        x=torch.cat([tape.x for tape in tapes], 1)[:, order],
        x_next=torch.cat([tape.x_next for tape in tapes], 1)[:, order],
        beside=[torch.cat(answers)[order] for answers in zip(*(tape.beside for tape in tapes), strict=True)],
        random=torch.cat([tape.random for tape in tapes]).any(0),
        trained=trained.any(0),
        dt=first.dt.expand(count, -1),
        starts=torch.tensor(rows.starts),
        together=(tuple(rows.together),),
        which=torch.zeros(count, dtype=torch.int64),
        means=torch.cat([_means(tape, columns) for tape in tapes], 1)[:, order] if drift else None,
        chunk=first.chunk,
    )
    log_probs, outputs = torch.cat([tape.log_probs for tape in tapes])[order], torch.cat([tape.outputs for tape in tapes])[order]
    facts = {"std": first.std.expand(count, -1), "slope": first.slope.expand(count, -1)}
    return held, log_probs, trained, outputs, facts


def _means(tape: Tape, columns: list[int]) -> Tensor:
    """The means that were kept at those steps, ``[C, R, ...]`` float32 on the CPU, 0 where none was; C may be 0."""
    nothing = torch.zeros(tape.x.shape[1:])
    means = [tape.gaussians[column][0].float().cpu() if column in tape.gaussians else nothing for column in columns]
    return torch.stack(means) if means else torch.zeros(0, *tape.x.shape[1:])


def refuse_again(pipe: Any, moment: Moment, before: list[Moment]) -> None:
    """Refuses a pipeline that asks its scheduler a second time where it has just been: its table would have two columns for a step.

    before: the questions so far, without their latents; this one is added. A new schedule may begin anew: the next chunk of a video.

    Errors: UserError for such a pipeline.
    """
    if before and moment.chunk == before[-1].chunk and moment.left >= before[-1].left:
        raise UserError(
            f"policy.pipeline: {type(pipe).__name__} asks its scheduler more than once at one time (question {moment.column + 1}), so that "
            "its steps are no policy's; takes a pipeline that steps once at each time"
        )
    nothing = moment.x.new_zeros(0)
    before.append(moment._replace(x=nothing, prediction=Prediction(nothing, nothing)))


def refuse_branches(pipe: Any, moment: Moment, begun: Begun | None) -> None:
    """Errors: UserError for branches inside of a video that is made in chunks, whose beginnings lie in one of them."""
    if moment.chunk and begun is not None:
        raise UserError(
            f"policy.schedule.branches: {type(pipe).__name__} makes this video in chunks, and branches begin in one; takes none"
        )


def refuse_parts(pipe: Any, held: Trajectories) -> None:
    """Errors: UserError for rewards of latents, of which a video in chunks has some for each chunk."""
    if held.chunks > 1:
        raise UserError(
            f"rewards: {type(pipe).__name__} makes this video in {held.chunks} chunks, each of its own latents; takes rewards of outputs"
        )


def refuse_shapes(pipe: Any, latents: list[Tensor]) -> None:
    """Errors: UserError for a pipeline whose latents change their shape from step to step, or from chunk to chunk."""
    shapes = sorted({tuple(x.shape[1:]) for x in latents})
    if len(shapes) > 1:
        got = f"latents of {' and '.join(str(list(shape)) for shape in shapes)} in one call"
        raise UserError(f"policy.pipeline: {type(pipe).__name__} has {got}, and a rollout's have one shape; takes chunks of one length")


def refuse_unasked(pipe: Any, questions: list[Any]) -> None:
    """Refuses a pipeline whose call has ended without a step of its scheduler.

    questions: that the scheduler was asked.

    Errors: UserError for such a pipeline.
    """
    if not questions:
        raise UserError(
            f"policy.pipeline: {type(pipe).__name__} never asks its scheduler for a step, so there is nothing to record; takes a pipeline "
            "whose call steps through `pipe.scheduler`"
        )


def kept(latents: Tensor) -> Tensor:
    """As a rollout keeps them, on the CPU: pipelines may write into what they hold."""
    return latents.to("cpu", copy=True)
