"""A trained run asked again what its own evaluations asked: its prompts, its rewards and judges, before training and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmalign.commands._trained import trained
from mmalign.config import build_part
from mmalign.training.evaluation import evaluate, evaluation_plan
from mmalign.training.settings import Evaluation
from mmalign.types import UserError


def reevaluated(run_folder: str | Path, *, samples: int | None = None, trust: bool = False) -> dict[str, dict[str, float]]:
    """``{"ref": {name: number}, NAME: {...}}``: what a run's evaluation says of the reference and of its best parameters.

    samples: of each prompt, those of the run's config by default. trust: its config may name code outside of mmalign.

    Errors: UserError for a run without a checkpoint, and for one whose config names no prompts (an offline run evaluates on its records').
    """
    run = trained(run_folder, trust=trust)
    settings = dict(build_part(run.config, "evaluation") or {})
    if samples is not None:
        settings["samples"] = samples
    prompts = settings.get("prompts") or build_part(run.config, "prompts")
    if not prompts:
        raise UserError(f"{run.folder}: its config names no prompts to evaluate on; takes --suite, or a run with evaluation.prompts")
    settings.pop("stop", None)
    plan = evaluation_plan(Evaluation(**settings), prompts=list(prompts)[:16], rewards=dict(build_part(run.config, "rewards") or {}))
    policy: Any = run.policy()
    best = "current" if run.best == "trained" else run.best
    return {"ref": evaluate(policy, plan, using="ref").metrics, run.best: evaluate(policy, plan, using=best).metrics}
