"""A trained run asked again what its own evaluations asked: its prompts, its rewards and judges, before training and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmalign.config import build_part
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.runs.trained import Trained, trained
from mmalign.training.evaluations.evaluation import EvaluationPlan, evaluate, evaluation_plan
from mmalign.training.journal import hashed
from mmalign.training.settings import Evaluation
from mmalign.types import UserError


def reevaluated(run_folder: str | Path, *, samples: int | None = None, trust: bool = False) -> dict[str, dict[str, float]]:
    """``{"ref": {name: number}, NAME: {...}}``: what a run's evaluation says of the reference and of its best parameters.

    samples: of each prompt, those of the run's config by default. trust: its config may name code outside of mmalign. Of several processes
    each samples for some of the prompts, and all have the numbers.

    Errors: UserError for a run without a checkpoint, for one whose config names no prompts (an offline run evaluates on its records'), and
    for more processes than prompts.
    """
    team = joined()
    with stopping_together(team):
        run = trained(run_folder, trust=trust)
        plan = _plan(run, samples)
        team_for(len(plan.prompts), "evaluation.prompts")
        team.agree("evaluation.prompts", [hashed(plan.prompts), plan.samples])
        policy: Any = run.policy()
        sets = {"ref": "ref", run.best: "current" if run.best == "trained" else run.best}
        metrics = {name: evaluate(policy, plan, using=using, team=team).metrics for name, using in sets.items()}
        return dict(team.tell(metrics)[0])  # the main one's: metrics of one's own may be random


def _plan(run: Trained, samples: int | None) -> EvaluationPlan:
    settings = dict(build_part(run.config, "evaluation") or {})
    if samples is not None:
        settings["samples"] = samples
    prompts = settings.get("prompts") or build_part(run.config, "prompts")
    if not prompts:
        raise UserError(f"{run.folder}: its config names no prompts to evaluate on; takes --suite, or a run with evaluation.prompts")
    settings.pop("stop", None)
    return evaluation_plan(Evaluation(**settings), prompts=list(prompts)[:16], rewards=dict(build_part(run.config, "rewards") or {}))
