"""A planner that is asked for attributes of its motions, trained from judgements, and measured in its world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmalign.arguments.ranges import Count, NotNegative, Positive, Seed
from mmalign.distributed.team import joined
from mmalign.files import write_json
from mmalign.types import UserError
from mmalign.worlds.control.planner import area_under_errors, followed, places_among, preferred
from mmalign.worlds.control.runner import Control

__all__ = ["align_planner"]


def align_planner(  # what a command may be told
    world: Control, *, out: str, targets: Count = 200, candidates: Count = 8, guidance: NotNegative = 0.5, motions: Count = 4000,
    judgements: Count = 8000, temperature: Positive = 0.3, iterations: Count = 3000, seed: Seed = 0,
) -> dict[str, float]:  # fmt: skip
    """Trains AlignDiff's attribute model and planner on a world, asks for strengths of attributes, and says how near it comes.

    Args:
        world: ``{use: runner}``, or a ``Control`` of your own. out: a file of JSON with every target: ``wanted``, ``mask``, ``reached``.
        targets: asked for. candidates: plans of which the attribute model takes the best. guidance: w of ``(1 + w) eps(v) - w eps``.
        motions, judgements, temperature, iterations: as of ``mm.worlds.preferred``. seed: of all that is drawn.

    Errors are by the world's own measure, the part of the recorded motions that have less, in 0..1, over the attributes that were asked
    for. Counts: ``error`` of motions as they were run in the world, ``error_planned`` of plans, ``error_first`` of the first plan drawn,
    ``error_unasked`` of plans that nothing was asked of, and ``area`` under the distribution function of the errors of motions.

    Paper: AlignDiff, https://arxiv.org/abs/2310.02054, recalled.

    Errors: UserError for a file that is there, and as of ``mm.worlds.preferred``.
    """
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    if not isinstance(world, Control):
        raise UserError(f"align_planner.world: got a {type(world).__name__}, takes {{use: runner}} or a Control")
    settings: dict[str, Any] = {"motions": motions, "judgements": judgements, "temperature": temperature, "iterations": iterations}
    planner, judge, recorded = preferred(world, **settings, seed=seed)
    truth, rng = world.measure(recorded).sort(0).values, torch.Generator().manual_seed(seed + 3)
    count = len(world.attributes)
    wanted, chance = torch.rand(2, targets, count, generator=rng)
    mask = (chance < 0.5) | torch.nn.functional.one_hot(torch.randint(count, (targets,), generator=rng), count).bool()  # one at least
    states = world.record(targets, rng)[:, 0]

    def planned(asked: torch.Tensor, count: int) -> torch.Tensor:
        return planner.plan(states, wanted, asked, judge, candidates=count, guidance=guidance, seed=seed + 4)

    def errors(motions: torch.Tensor) -> torch.Tensor:
        return (places_among(truth, world.measure(motions)) - wanted).abs()[mask]

    plans = planned(mask, candidates)
    run = followed(world, plans, rng)
    told = {
        "error": float(errors(run).mean()), "error_planned": float(errors(plans).mean()),
        "error_first": float(errors(planned(mask, 1)).mean()), "error_unasked": float(errors(planned(mask & False, 1)).mean()),
        "area": area_under_errors(errors(run)),
    }  # fmt: skip
    if joined().main:
        reached = places_among(truth, world.measure(run))
        rows = zip(wanted.tolist(), mask.tolist(), reached.tolist(), strict=True)
        body = [dict(zip(("wanted", "mask", "reached"), row, strict=True)) for row in rows]
        write_json(Path(out), {"attributes": list(world.attributes), **told, "targets": body})
    joined().tell("written")
    return told
