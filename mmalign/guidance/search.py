"""Whole samples made again and again: best-of-N, and searches over the noise that they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.combinations._stages import in_stages, refuse_stages
from mmalign.guidance import _smc
from mmalign.guidance._calls import fields, merged
from mmalign.guidance._run import Guidance, GuidedRun, Samples
from mmalign.guidance.guide import run_particles, sampled
from mmalign.types import UserError

__all__ = ["best_of", "noise_search"]


def best_of(*, count: Count = 4, rows_at_once: Count = 16, keep: Mapping[str, Count] | None = None) -> Guidance:
    """The best of ``count`` samples by the reward: the bar for every method at equal cost.

    KL to the model: at most ``ln n - (n - 1) / n`` nats. Runs whatever else guides the pipeline inside. Where the user gives a
    generator, all candidates' seeds are drawn from it.

    Args:
        count: 1 is the model itself. rows_at_once: samples in one batch.
        keep: in stages: name of one of several rewards -> how many samples of a row go on to the next, each fewer than the one before. The
            rewards that are not named are the last stage. The trace says of each how often it was asked, and how often in vain. A sample
            without a score goes on only where there is room.

    In a loop, each call given what the one before chose (the last frame of a video, say), it chooses anew at each part of a long task.

    Cost: ``count`` times the pipeline's own; as many decodes, and as many rewards of the first stage.

    Errors: UserError for a number below 1, for numbers of ``keep`` that do not fall, for names that are no rewards, and for no last stage.
    """
    if count < 1 or rows_at_once < 1:
        raise UserError(f"best_of: got count {count} and rows_at_once {rows_at_once}, takes 1 or more")
    if keep and max(keep.values()) >= count:
        raise UserError(f"best_of.keep: got {dict(keep)}, takes fewer than count, {count}")

    def search(run: GuidedRun) -> Samples:
        every, wanted = run_particles(run), len(run.call.prompts)
        if keep:
            refuse_stages("best_of", keep, list(run.rewards))
            if every > 1:
                raise UserError("best_of.keep: takes no particles inside, whose last choice is by all rewards")
        if count == 1:
            return sampled(run, run.seeds(every, peek=every == 1), generator=run.call.generator if every == 1 else None)
        seeds = run.seeds(count * every)
        rows = [row for row in range(wanted) for _ in range(count)]
        parts = []
        for chunk in torch.arange(len(rows)).split(max(1, rows_at_once // every)):
            at = chunk.tolist()
            of = [rows[place] for place in at]
            parts.append(sampled(run, seeds[at[0] * every : (at[-1] + 1) * every], rows=of, scored=not keep))
        return chosen(_in_stages(run, parts, rows, keep) if keep else parts, wanted)

    return Guidance("best_of", frozenset({"reward"}), search=search)


def noise_search(
    *, count: Count = 4, rounds: Count = 3, how: Literal["zero_order", "random"] = "zero_order", radius: NotNegative = 0.3
) -> Guidance:
    """Search over the noise that a sample starts from: around the best one so far, or anywhere.

    Paper: Inference-time Scaling for Diffusion Models beyond Scaling Denoising Steps, https://arxiv.org/abs/2501.09732

    ``zero_order``: each round's candidates are the pivot and ``count - 1`` neighbours ``sqrt(1 - radius^2) z + radius e`` of it,
    which are as likely noise as the pivot is; the best becomes the pivot. ``random``: fresh noise in each round, which is best-of-N.
    Searches over paths, which resample on the way, are ``svdd`` and ``fk``.

    Args:
        count: candidates of each round. rounds: how many.
        how: ``zero_order`` or ``random``.
        radius: above 0, up to 1: what of a neighbour's noise is new, as a standard deviation; its share of the variance is the square.

    Cost: ``rounds * count - (rounds - 1)`` samples of each row (the pivot is not made again); as many decodes and rewards.

    Deviations: neighbours keep the norm of noise; the paper adds to it. Noise that a pipeline draws at later steps is the
    same for all candidates of a row.

    Errors: UserError for a number out of range, and for a pipeline that makes its first latent inside its call and takes none.
    """
    if count < 2 or rounds < 1:
        raise UserError(f"noise_search: got count {count} and rounds {rounds}, takes 2 or more, and 1 or more")
    if how not in ("zero_order", "random"):
        raise UserError(f"noise_search.how: got {how!r}, takes 'zero_order' or 'random'")
    if not 0 < radius <= 1:
        raise UserError(f"noise_search.radius: got {radius}, takes a number above 0 and up to 1")

    def search(run: GuidedRun) -> Samples:
        if run_particles(run) > 1:
            raise UserError("noise_search: takes no particles inside; best_of does")
        rows, seeds = list(range(len(run.call.prompts))), run.seeds(1)
        place, pivot = run.first_latents(rows, seeds)
        size = pivot.flatten(1).float().std(1).mean()  # noise of a variance-exploding path is not of unit size
        rng, parts = run.rng(seeds), list[Samples]()
        best = torch.full((len(rows),), float("-inf"), dtype=torch.float64)
        for number in range(rounds):
            tried = pivot
            for copy in range(count):
                if copy == 0 and number > 0:
                    continue  # the pivot has been made
                fresh = size * torch.randn(pivot.shape, generator=rng).to(pivot)
                near = (1 - radius**2) ** 0.5 * pivot + radius * fresh if how == "zero_order" else fresh
                noise = pivot if copy == 0 else near
                parts.append(sampled(run, seeds, latents=(place, noise)))
                wins = parts[-1].scores > best
                tried = torch.where(wins.view(-1, *(1,) * (noise.ndim - 1)).to(noise.device), noise, tried)
                best = torch.where(wins, parts[-1].scores, best)
            pivot = tried
            run.trace.append({"round": number, "best": best})
        return _of_rounds(parts, len(rows))

    return Guidance("noise_search", frozenset({"reward"}), search=search)


def _in_stages(run: GuidedRun, parts: Sequence[Samples], rows: list[int], keep: Mapping[str, int]) -> list[Samples]:
    """The parts with the scores of the last stage, NaN of samples that it was not asked about."""
    outputs, last = torch.cat([part.outputs for part in parts]), [name for name in run.rewards if name not in keep]

    def asked(names: Sequence[str]) -> Callable[[list[int]], Tensor]:
        return lambda places: run.score(outputs[places], [rows[place] for place in places], names=names)

    stages = {name: asked([name]) for name in keep} | {"+".join(last): asked(last)}
    found = in_stages(stages, torch.tensor(rows), keep)
    run.trace += [{"stage": name, "asked": found.asked[name], "missing": found.missing[name]} for name in stages]
    each = found.last.split([len(part.outputs) for part in parts])
    return [part._replace(scores=scores) for part, scores in zip(parts, each, strict=True)]


def _of_rounds(parts: Sequence[Samples], wanted: int) -> Samples:
    """The best of each row over parts that hold one candidate of every row."""
    scores = torch.stack([part.scores for part in parts], 1)
    best = _smc.best(scores).tolist()
    sizes = [len(next(iter(fields(part.result).values()))) for part in parts]
    places = [parts[which].places[row] + sum(sizes[:which]) for row, which in enumerate(best)]
    outputs = torch.stack([parts[which].outputs[row] for row, which in enumerate(best)])
    highest = scores[torch.arange(wanted), torch.tensor(best)]
    return Samples(merged([part.result for part in parts]), outputs, highest, places, parts[0].kind)


def chosen(parts: Sequence[Samples], wanted: int) -> Samples:
    """The best of the candidates of each wanted row, all made in parts one after the other, those of a row side by side."""
    scores = torch.cat([part.scores for part in parts]).view(wanted, -1)
    best = _smc.best(scores)
    flat = (torch.arange(wanted) * scores.shape[1] + best).tolist()
    sizes = [len(next(iter(fields(part.result).values()))) for part in parts]
    places = [place + sum(sizes[:number]) for number, part in enumerate(parts) for place in part.places]
    outputs = torch.cat([part.outputs for part in parts])
    kept = [places[place] for place in flat]
    return Samples(merged([part.result for part in parts]), outputs[flat], scores.flatten()[flat], kept, parts[0].kind)
