"""The same prompts and seeds, judged every so often: what a person would get from the model now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.conversations import answer_of
from mmalign.distributed import tables as of_all
from mmalign.distributed.team import ALONE, Team
from mmalign.runs import tokens
from mmalign.runs.pixels import PREFIX, SAMPLES
from mmalign.training.evaluations.image_dependence import image_dependence
from mmalign.training.evaluations.own_samples import Credits, own_kl, own_samples
from mmalign.training.evaluations.pixels import pixel_statistics
from mmalign.training.rollouts.background import Background
from mmalign.training.rollouts.feedback import Scores, ask, measure, refuse_columns
from mmalign.training.rollouts.latents import generated
from mmalign.training.rollouts.rollouts import parts_of
from mmalign.training.settings import Evaluation
from mmalign.types import Policy, Rollout, UserError, columns_of, contents

CREDITED = 16  # answers of which is kept what each token gained
SEED = 2**40  # far from every seed that training draws its generators from

Functions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class EvaluationPlan:
    """What is asked at every evaluation.

    prompts, samples: ``samples`` outputs of every prompt, at fixed seeds. rewards, judges: averaged over rows. metrics: functions
    ``(outputs, prompts) -> {name: number}`` of the whole set. every: steps between evaluations. columns: how many samples of a
    prompt the grid shows. call: arguments of the sampler that users have, such as ``num_inference_steps``.
    real: ``(prompts, columns) -> [prompts, columns, C, H, W]`` in 0..1 (F, C, H, W: videos), real data to show beside the samples.
    mark: of answers in words, ``(outputs, prompts) -> [{"mentions": [(start, end, object, whether it is there)], "objects": [...]}]``,
    what each of them says that is there and that is not, to be shown; see ``runs.answers``.
    reference: the set of parameters to which the KL of what answered is measured on its samples, as ``kl`` in nats, and what else
    ``own_samples`` measures, where the policy is ``abilities.Traced``. None: it is not. references: further ones, for ``kl/NAME``.
    blind: score the answers without their images too, for ``image_dependence``; see ``image_dependence``. Two more passes
    over them.
    overlap: parts in which the prompts are asked; what one part is worth is found while the next one is sampled.
    held_out: measures the parameters that are in place on records that nothing is trained on, see ``held_out``; with it there may
    be no prompts, and nothing is sampled then.

    Errors: UserError for no prompts, and for a judge that has a reward's name.
    """

    prompts: Sequence[str]
    rewards: Functions
    judges: Functions = field(default_factory=dict)
    metrics: Functions = field(default_factory=dict)
    every: int = 20
    samples: int = 16
    columns: int = 8
    call: Mapping[str, Any] = field(default_factory=dict)
    real: Callable[[Sequence[str], int], Tensor] | None = None
    mark: Callable[[Sequence[str], Sequence[Any]], Sequence[Mapping[str, Any]]] | None = None
    blind: bool = False
    reference: str | None = None
    references: Sequence[str] = ()
    overlap: int = 1
    held_out: Callable[[], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        if not self.prompts and self.held_out is None:
            raise UserError("evaluation.prompts: got none, takes at least one")
        if self.references and self.reference is None:
            raise UserError("evaluation.references: this policy's samples have no densities step by step; takes a language model, or none")
        there = columns_of(self.prompts)
        refuse_columns(self.rewards, there, kind="reward")
        refuse_columns(self.judges, there, kind="judge")
        refuse_columns(self.metrics, there, kind="metric")
        if both := sorted(self.rewards.keys() & self.judges.keys()):
            raise UserError(f"evaluation.judges.{both[0]}: a reward has that name too; takes another")


def evaluation_plan(
    settings: Evaluation, *, prompts: Sequence[Any], rewards: Functions, reference: str | None = None,
    held_out: Callable[[], dict[str, float]] | None = None,
) -> EvaluationPlan:  # fmt: skip
    """An evaluation as a recipe makes it: on ``prompts`` where the settings name none, and with the rewards of training beside judges."""
    chosen = prompts if settings.prompts is None else settings.prompts
    names = ("judges", "metrics", "every", "samples", "columns", "call", "real", "mark", "blind", "overlap", "references")
    same = {name: getattr(settings, name) for name in names}
    return EvaluationPlan(prompts=chosen, rewards=rewards, reference=reference, held_out=held_out, **same)


class Answers(NamedTuple):
    """Answers to the prompts beside them, in words or as the turns that followed; marks, of the last words, as in ``EvaluationPlan.mark``,
    None where nobody marks. credits: number of an answer in words -> what each of its tokens gained over the reference (``own_samples``),
    of the first answers to some prompts."""

    prompts: list[Any]
    outputs: list[Any]
    marks: list[Mapping[str, Any]] | None
    credits: Mapping[int, Credits] = {}


class Results(NamedTuple):
    """``metrics``: means by name, with ``NAME_se``, of images and videos ``pixels/NAME`` among them (``pixels``). ``grid``:
    ``[prompts, columns, C, H, W]`` in 0..1 (F, C, H, W: videos), else None.

    ``answers``: the first ``columns`` of each prompt where outputs are words, else None. ``scores``: name -> ``[prompts, columns]``, what
    each reward and judge said of those that are shown.
    """

    metrics: dict[str, float]
    grid: Tensor | None
    answers: Answers | None = None
    scores: Mapping[str, Tensor] = {}


@torch.no_grad()
def evaluate(policy: Policy, plan: EvaluationPlan, *, using: str = "current", team: Team = ALONE) -> Results:
    """One evaluation of the named parameter set. Missing scores are left out of means, and counted in ``NAME_missing``.

    Each process of a team samples for some of the prompts, and scores what it sampled; what is returned is of all of them.
    """
    measured = dict[str, float]()
    if plan.held_out is not None:
        with policy.using(using):
            measured = plan.held_out()
    if not plan.prompts:
        return Results(measured, None)
    results = _of_samples(policy, plan, using, team)
    return results._replace(metrics={**results.metrics, **measured})


def _of_samples(policy: Policy, plan: EvaluationPlan, using: str, team: Team) -> Results:
    """What rewards, judges and metrics say of samples."""
    rows = [prompt for prompt in contents(plan.prompts) for _ in range(plan.samples)]
    columns = {name: [value for value in column for _ in range(plan.samples)] for name, column in columns_of(plan.prompts).items()}
    part = team.share(len(plan.prompts))
    own = slice(part.start * plan.samples, part.stop * plan.samples)
    outputs, scored, credits = None, dict[str, Tensor](), list[Credits]()
    if own.start < own.stop:
        with Background(threaded=plan.overlap > 1) as background:
            with policy.using(using):
                outputs, waiting, traced = _generated(policy, plan, rows, columns, part, background, asks=team.asks)
                if plan.blind:
                    scored["image_dependence"] = image_dependence(policy, rows[own], _words(outputs))
                if plan.reference is not None:
                    scored |= own_samples(policy, Rollout.join(traced), plan.reference, credits)
                    scored |= {f"kl/{name}": own_kl(policy, Rollout.join(traced), name) for name in plan.references}
            scored = {**Scores.join([wait() for wait in waiting]).named, **scored, **pixel_statistics(outputs)}
    outputs, credits = of_all.outputs(team, outputs), of_all.outputs(team, credits)
    metrics: dict[str, float] = {}
    of_rows = of_all.scores(team, scored, own.stop - own.start)
    for name, scores in of_rows.items():
        known = scores[~scores.isnan()]
        metrics[name] = float(known.mean()) if len(known) else float("nan")
        metrics[f"{name}_se"] = float(known.std() / len(known) ** 0.5) if len(known) > 1 else float("nan")
        if len(known) < len(scores):
            metrics[f"{name}_missing"] = float(len(scores) - len(known))
        if name.startswith(PREFIX):
            metrics[SAMPLES] = float(len(scores))
    metrics.update(measure(plan.metrics, outputs, rows, columns))
    shown = isinstance(outputs, Tensor) and outputs.ndim in (4, 5)  # images or videos
    grid = outputs.unflatten(0, (len(plan.prompts), plan.samples))[:, : plan.columns].float().cpu().clamp(0, 1) if shown else None
    of_shown = {name: scores.unflatten(0, (len(plan.prompts), plan.samples))[:, : plan.columns] for name, scores in of_rows.items()
                if not name.startswith((PREFIX, tokens.PREFIX))}  # fmt: skip
    return Results(metrics, grid, None if isinstance(outputs, Tensor) else _answers(plan, outputs, rows, credits), of_shown)


def _generated(
    policy: Policy, plan: EvaluationPlan, rows: list[Any], columns: Mapping[str, list[Any]], prompts: slice, background: Background, *,
    asks: bool,
) -> tuple[Any, list[Callable[[], Scores]], list[Rollout]]:  # fmt: skip
    """Outputs to some of the prompts, made in ``plan.overlap`` parts, of each part what waits for its scores, and the rows that it was
    drawn as where they are compared with a reference. asks: whether this process asks for scores (``Team.asks``)."""
    outputs, waiting, traced = list[Any](), list[Callable[[], Scores]](), list[Rollout]()
    for part in parts_of(prompts, min(plan.overlap, prompts.stop - prompts.start)):
        some = slice(part.start * plan.samples, part.stop * plan.samples)
        seeds = [SEED + number for number in range(len(rows))[some]]
        if plan.reference is None:
            made, latents = generated(policy, rows[some], seeds, dict(plan.call), plan.rewards, plan.judges)
        else:
            traced.append(policy.traced(rows[some], seeds, **plan.call))  # type: ignore[attr-defined]
            made, latents = traced[-1].outputs, None
        outputs.append(made)
        beside = {name: column[some] for name, column in columns.items()}
        judged = partial(_judged, plan, made, rows[some], beside, latents) if asks else partial(Scores, len(rows[some]), {})
        waiting.append(background(judged))
    whole = torch.cat(outputs) if isinstance(outputs[0], Tensor) else [output for some_outputs in outputs for output in some_outputs]
    return outputs[0] if len(outputs) == 1 else whole, waiting, traced


def compared_with(policy: Policy) -> str | None:
    """The reference beside which an evaluation's own samples are measured: ``ref``, which costs a policy nothing more to keep whether or
    not the method asks for it; None where samples have no densities step by step."""
    return "ref" if "traced" in policy.gives else None


def _judged(plan: EvaluationPlan, outputs: Any, prompts: list[Any], columns: Mapping[str, list[Any]], latents: Tensor | None) -> Scores:
    """What rewards and judges say of some outputs."""
    judges = ask(plan.judges, outputs, prompts, columns, kind="judge", latents=latents)
    judged = {**ask(plan.rewards, outputs, prompts, columns, latents=latents), **judges}
    return Scores(len(prompts), judged)


def _words(outputs: Any) -> list[str]:
    if isinstance(outputs, Tensor) or not all(isinstance(output, str) for output in outputs):
        raise UserError("evaluation.blind: this policy does not answer in words; takes false")
    return list(outputs)


def _answers(plan: EvaluationPlan, outputs: Any, rows: list[Any], credits: list[Credits]) -> Answers | None:
    """What a person may read of it. Errors: UserError for marks that are not one for each answer."""
    if not isinstance(outputs, (list, tuple)) or not all(isinstance(output, str) or answer_of(output) is not None for output in outputs):
        return None
    shown = [place for place in range(len(outputs)) if place % plan.samples < plan.columns]
    prompts, words = [rows[place] for place in shown], [outputs[place] for place in shown]
    last = [output if isinstance(output, str) else answer_of(output) or "" for output in words]
    marks = None if plan.mark is None else list(plan.mark(last, prompts))
    if marks is not None and len(marks) != len(words):
        raise UserError(f"evaluation.mark: returned {len(marks)} marks for {len(words)} answers, takes one for each")
    first = [place for place in shown if place % plan.samples == 0][:CREDITED] if credits else []
    of_words = {shown.index(place): credits[place] for place in first if credits[place] and isinstance(outputs[place], str)}
    return Answers(prompts, words, marks, of_words)
