"""Samples of a trained run, by the sampler that users have; or of any model, guided."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.facts import of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Count, Seed
from mmalign.commands._models import Model, guidance_of, model_of, of_pipe
from mmalign.config import build_part
from mmalign.distributed import tables as of_all
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.files import write_text
from mmalign.guidance._calls import outputs_of
from mmalign.guidance._run import checked
from mmalign.guidance.guide import guide
from mmalign.guidance.ledger import Ledger
from mmalign.runs import checkpoint
from mmalign.runs.pictures import grid, write_each, write_mp4, write_png
from mmalign.runs.trained import trained
from mmalign.training.journal import hashed
from mmalign.types import Policy, UserError, columns_of, contents

__all__ = ["guided_sample", "sample"]
SUM = "the weighted sum of all"  # the name of no reward


def sample(
    run_folder: str | Path, *, prompts: Sequence[str] | None = None, count: Count = 4, seed: Seed = 0, out: str | Path | None = None,
    trust: bool = False,
) -> Path:  # fmt: skip
    """Draws from a run's newest checkpoint into one PNG, a row per prompt and a column per seed (videos are animated); returns its path.

    Of a language model, the path of JSON lines: ``{"prompt": ..., "seed": ..., "completion": ...}``.

    Args:
        run_folder: of a run with a config; nothing in it is built but its policy, and its prompts where none are given.
        prompts: those of the run's evaluations by default, or else the ones it trained on.
        count: samples of each prompt, at the seeds ``seed``, ``seed + 1``, ...
        out: where to write; ``samples/sampled_<step>.png`` (``.jsonl``) in the run by default. A name that ends in ``.mp4`` makes a film of
            videos, and one without an ending a folder with each sample as a file of its own.
        trust: what is built may name code outside of mmalign, which is then imported and run.

    The best evaluated parameters are taken where the run kept them, or else their moving average where it has one. Of several processes
    each samples for some of the prompts, and the main one writes.

    Errors: UserError for a run without a checkpoint or without a policy in its config, for a prompt that the pipeline refuses, for more
    processes than prompts, and for outputs that are neither images, videos nor texts.
    """
    team = joined()
    with stopping_together(team):
        run = trained(run_folder, trust=trust, builds=("policy",) if prompts else ("policy", "prompts"))
        if count < 1:
            raise UserError(f"count: got {count}, takes 1 or more")
        evaluation = run.config.get("evaluation") or {}
        chosen = prompts or build_part(evaluation, "prompts") or build_part(run.config, "prompts")
        if not chosen:
            whose = "a run on records brings its own, a reward model makes no outputs"
            raise UserError(f"prompts: {run.folder} names none ({whose}); takes --prompt")
        wanted = contents(list(chosen))
        team_for(len(wanted), "prompts")
        team.agree("sample", [hashed(wanted), count, seed])
        seeds, policy = list(range(seed, seed + count)), run.policy()
        with policy.using("current" if run.best == "trained" else run.best):
            outputs = of_all.outputs(team, _generate(policy, wanted[team.share(len(wanted))], seeds, evaluation.get("call") or {}))
        ending = "png" if isinstance(outputs, Tensor) else "jsonl"
        path = run.folder / "samples" / f"sampled_{checkpoint.step_of(run.checkpoint):06d}.{ending}" if out is None else Path(out)
        if team.main:
            _written(path, outputs, wanted, seeds) if isinstance(outputs, Tensor) else _write_lines(path, wanted, seeds, outputs)
        return path


def _write_lines(path: Path, prompts: Sequence[Any], seeds: Sequence[int], completions: Sequence[str]) -> Path:
    """Completions as JSON lines, those of a prompt one after the other."""
    if path.suffix != ".jsonl":
        raise UserError(f"out: got {path}, takes .jsonl for the completions of a language model")
    rows = [(prompt, seed) for prompt in prompts for seed in seeds]
    lines = [
        json.dumps({"prompt": prompt, "seed": seed, "completion": completion}, ensure_ascii=False, default=str)
        for (prompt, seed), completion in zip(rows, completions, strict=True)
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path


def _written(path: Path, images: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Path:
    """Samples ``[prompts, seeds, (F,) C, H, W]`` as the ending of a path says."""
    if not path.suffix:
        return write_each(path, images, prompts, seeds)
    if path.suffix == ".mp4" and images.ndim == 6:
        return write_mp4(path, grid(images))
    if path.suffix != ".png":
        what = "a video" if images.ndim == 6 else "an image"
        raise UserError(f"out: got {path}, takes .png, a folder{', or .mp4' if images.ndim == 6 else ''} for {what}")
    return write_png(path, grid(images))


@torch.no_grad()
def _generate(policy: Policy, prompts: list[str], seeds: list[int], call: Mapping[str, Any]) -> Tensor | list[str]:
    """``[prompts, seeds, C, H, W]`` in 0..1; videos ``[prompts, seeds, F, C, H, W]``; of a language model, ``prompts x seeds`` texts."""
    rows = [prompt for prompt in prompts for _ in seeds]
    try:
        outputs = policy.generate(rows, seeds * len(prompts), **call)
    except (ValueError, TypeError) as error:
        raise UserError(f"prompt: the pipeline refuses {', '.join(map(str, prompts))}: {' '.join(str(error).split())}") from error
    if isinstance(outputs, list) and all(isinstance(output, str) for output in outputs):
        return outputs
    if not isinstance(outputs, Tensor) or outputs.ndim not in (4, 5):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(
            f"sample: got outputs {got} from this policy, takes images [batch, channels, height, width] or videos [batch, frames, ...]"
        )
    return outputs.unflatten(0, (len(prompts), len(seeds)))


class Sampled(NamedTuple):
    """A PNG with a row for each prompt; scores ``[prompts, count]`` of what is in it, where there is a reward; what it cost.

    parts: of several rewards what each says of the outputs, by name, ``[prompts, count]``.
    """

    path: Path
    scores: Tensor | None
    ledger: Ledger
    parts: Mapping[str, Tensor]


def guided_sample(  # what a command may be told
    model: Any, *, reward: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None, guidance: str | None = None,
    prompts: Sequence[Any] | None = None, count: Count = 4, seed: Seed = 0, call: Mapping[str, Any] | None = None,
    out: str | Path = "sampled.png", rows_at_once: Count = 16, trust: bool = False,
) -> Sampled:  # fmt: skip
    """Draws from any diffusers pipeline, guided or as it is, and writes one PNG (animated, of videos): a row per prompt, a column per seed.

    Args:
        model: a pipeline; or by name a run's folder, a config, a world, a class of diffusers (then a tiny twin), a folder or a hub id.
        reward: what to guide by; that of the model's config by default.
        guidance: a name of ``mm.guidance`` with its settings, ``"dps scale=5"``; ``guide``'s choice by default, where there is a reward.
        prompts: those of the model's config by default, with their columns.
        call: arguments of the pipeline's call, over those of the config.
        count: samples of each prompt, at the seeds ``seed``, ``seed + 1``, ...
        out: where to write, as of ``sample``.
        trust: the config of ``model`` may name code outside of mmalign, which is then imported and run.

    Errors: UserError for a model without a pipeline, without prompts, and for bad settings.
    """
    named = isinstance(model, (str, Path))
    source = model_of(str(model), trust=trust) if named else of_pipe(model)
    wanted = list(prompts or source.prompts)
    if not wanted or count < 1:
        raise UserError(f"sample: got {len(wanted)} prompts and count {count}, takes 1 or more (--prompt)")
    rewards = reward if reward is not None else source.rewards or None
    weights = source.weights if reward is None and source.rewards else None
    chosen, team = None if guidance is None else guidance_of(guidance), joined()
    with stopping_together(team):
        team_for(len(wanted), "prompts")
        team.agree("sample", [model if isinstance(model, str) else "", guidance, hashed(wanted), count, seed])
        own = wanted[team.share(len(wanted))]
        rows = [(prompt, seed + number) for prompt in own for number in range(count)]
        images, scores, ledger, parts = _guided(source, rewards, chosen, weights, rows, dict(call or {}), rows_at_once)
        images = of_all.outputs(team, images).unflatten(0, (len(wanted), count))
        every = of_all.scores(team, {**parts, **({} if scores is None else {SUM: scores})}, len(rows))
        each = {name: of_rows.unflatten(0, (len(wanted), count)) for name, of_rows in every.items()}
        spent = Ledger(*(sum(values) for values in zip(*team.tell(list(vars(ledger).values())), strict=True)))
        if team.main:
            _written(Path(out), images, wanted, list(range(seed, seed + count)))
        return Sampled(Path(out), each.pop(SUM, None), spent, each)


def _guided(
    source: Model, rewards: Any, chosen: Any, weights: Mapping[str, float] | None, rows: list[tuple[Any, int]], call: dict[str, Any],
    rows_at_once: int,
) -> tuple[Tensor, Tensor | None, Ledger, dict[str, Tensor]]:  # fmt: skip
    """Outputs ``[R, ...]`` of rows (a prompt and a seed), their scores ``[R]`` where there is a reward, what they cost, and what each of
    several rewards says, ``[R]``."""
    outputs, scores, parts = [], [], list[dict[str, Tensor]]()
    plain = rewards is None and chosen is None
    with source.using, nullcontext() if plain else guide(source.pipe, rewards, guidance=chosen, weights=weights) as guided:
        for chunk in (rows[start : start + rows_at_once] for start in range(0, len(rows), rows_at_once)):
            rng = [torch.Generator(source.pipe._execution_device).manual_seed(own) for _, own in chunk]
            some = [prompt for prompt, _ in chunk]
            arguments = source.arguments(contents(some) if plain else some, **call)
            result = source.pipe(**{**arguments, "output_type": "pt", "generator": rng if len(chunk) > 1 else rng[0]})
            outputs.append(outputs_of(result).detach().cpu())
            if guided is not None and guided.scores is not None:
                scores.append(guided.scores)
            if guided is not None and len(guided.rewards) > 1:
                parts.append(_apart(guided.rewards, outputs[-1], some))
                guided.ledger.rewards += len(some)
        ledger = Ledger() if guided is None else guided.ledger
    each = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    return torch.cat(outputs), torch.cat(scores) if scores else None, ledger, each


def _apart(rewards: Mapping[str, Callable[..., Any]], outputs: Tensor, prompts: Sequence[Any]) -> dict[str, Tensor]:
    """What each reward says of finished outputs ``[R, ...]``, ``[R]`` float64; of those that look at outputs, not at latents."""
    asked, columns = contents(prompts), columns_of(prompts)
    own = {name: reward for name, reward in rewards.items() if not of_latents(reward)}
    said = {name: checked(name, reward(outputs, asked, **accepted(reward, columns)), len(asked)) for name, reward in own.items()}
    return {name: scores.detach().double().cpu() for name, scores in said.items()}
