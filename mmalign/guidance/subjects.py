"""Guidance that keeps the subjects of a prompt apart: it needs no reward, and reads the denoiser's attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.guidance._checks import check_above, check_interval
from mmalign.guidance._run import Guidance, GuidedRun
from mmalign.guidance.gradients import limited, place_in_schedule, shifted
from mmalign.policies.pipelines.calls.attention import SubjectCost
from mmalign.policies.pipelines.calls.interception import watched
from mmalign.policies.pipelines.calls.scheduler import Moment
from mmalign.policies.pipelines.rollouts.probing import probed
from mmalign.types import Level, Prediction, UserError

__all__ = ["focus"]


def focus(
    *, subjects: Sequence[str] | None = None, scale: NotNegative = 1.0, start: Proportion = 0.0, stop: Proportion = 1.0,
    limit: Positive | None = 1.0,
) -> Guidance:  # fmt: skip
    """FOCUS while one samples: each latent moves to where the prompt's subjects attend to different places.

    With C in 0..1 how far subjects share attention (``samplers.subjects``), at a level ``x = a x_0 + b eps``::

        score += - 2 scale b grad_x C(x)

    which on a flow is their controller, the memoryless diffusion ``2 b / a`` times the velocity's part of it.

    Args:
        subjects: words of the prompt, two or more, the same for all prompts; None: the column ``subjects`` of each, a list.
        scale: their lambda, of 1 to 5. 0 is the model without guidance.
        start, stop, limit: as in ``tfg``.

    Cost per step: one more evaluation, and a gradient; the denoiser's attention is computed a second time beside its own. Any denoiser
    whose attention is torch's and goes to the prompt's words, across or jointly, serves: which keys are text is measured, and whose words.

    Paper: Optimal Control Meets Flow Matching: A Principled Route to Multi-Subject Fidelity (FOCUS), arXiv 2510.02315; the formula is that
    of its code, recalled.

    Deviations: all layers count alike, theirs are chosen for each model. Maps are taken without guidance.

    Errors: UserError for words that are not in the prompt, fewer than two, and a pipeline whose prompts have no places.
    """
    check_interval("focus", start, stop)
    check_above("focus", limit=limit)
    if subjects is not None and len(subjects) < 2:
        raise UserError(f"focus.subjects: got {list(subjects)}, takes two words of the prompt or more")
    costs: list[SubjectCost] = []  # of the pipeline that was guided last

    def change(run: GuidedRun, moment: Moment, rows: Sequence[int]) -> Prediction:
        if scale == 0 or not start <= place_in_schedule(run, moment) < stop or float(moment.t.signal.min()) <= 0:
            return moment.prediction
        if not costs or costs[0].pipe is not run.pipe or costs[0].arguments is not run.call.shared:
            costs[:] = [SubjectCost(run.pipe, run.call.shared)]
        named = [_subjects(run, row) if subjects is None else list(subjects) for row in rows]
        ascent = -2 * scale * moment.t.noise * _gradient(run, costs[0], moment, rows, named)
        return shifted(moment, limited(moment.t.noise.to(ascent) ** 2 / moment.t.signal.to(ascent) * ascent, limit))

    return Guidance("focus", frozenset(), change=change)


def _subjects(run: GuidedRun, row: int) -> list[str]:
    if "subjects" not in run.call.columns:
        raise UserError(
            "focus.subjects: got none, and the prompt has no column subjects; takes words of the prompt, or a mm.Prompt with it"
        )
    return list(run.call.columns["subjects"][row])


def _gradient(run: GuidedRun, cost: SubjectCost, moment: Moment, rows: Sequence[int], named: Sequence[Sequence[str]]) -> Tensor:
    """``dC / dx`` of some rows, ``[B, ...]``, 0 where it is not finite."""
    seated, kept = run.pipe.scheduler, {name: value for name, value in run.pipe.__dict__.items() if name.startswith("_")}
    time = seated.schedule[len(seated.schedule) - moment.left]
    prompts = [run.call.prompts[row] for row in rows]
    run.pipe.scheduler = run.scheduler

    with watched(run.pipe) as made:
        first = run.first_moment(rows[:1], [0])
    place = None if first is None else run.place_of(made, first.x, rows[:1], [0])

    def ask(some: list[str], x: Tensor) -> object:
        row = rows[prompts.index(some[0])]
        levels = Level(*(value.to(x).expand(len(x)) for value in moment.t))
        return probed(run.caller, {0: place}, some, x, time.to(x.device).expand(len(x)), levels, **run.arguments([row]))

    try:
        with torch.enable_grad():
            leaf = moment.x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cost(ask, prompts, named, leaf).sum(), leaf)
    finally:
        run.pipe.scheduler = seated
        run.pipe.__dict__.update(kept)
    run.ledger.gradients += len(rows)
    return torch.where(gradient.isfinite(), gradient, 0.0)
