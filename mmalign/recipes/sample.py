"""Samples of a trained run, by the sampler that users have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.config import build_part
from mmalign.recipes._trained import trained
from mmalign.runtime import checkpoint
from mmalign.runtime.folder import grid, write_png
from mmalign.types import Policy, UserError

__all__ = ["sample"]


def sample(
    run_folder: str | Path, *, prompts: Sequence[str] | None = None, count: int = 4, seed: int = 0, out: str | Path | None = None
) -> Path:
    """Draws from a run's newest checkpoint, and returns the path of one PNG: a row per prompt, a column per seed (videos: an animated one).

    Args:
        run_folder: of a run with a config; nothing in it but its policy is built.
        prompts: those of the run's evaluations by default, or else the ones it trained on.
        count: samples of each prompt, at the seeds ``seed``, ``seed + 1``, ...
        out: where to write; ``samples/sampled_<step>.png`` in the run by default.

    The best evaluated parameters are taken where the run kept them, or else their moving average where it has one. Errors:
    UserError for a run without a checkpoint or without a policy in its config, for a prompt that the pipeline refuses, and for
    outputs that are neither images nor videos.
    """
    run = trained(run_folder)
    if count < 1:
        raise UserError(f"count: got {count}, takes 1 or more")
    evaluation = run.config.get("evaluation") or {}
    wanted = list(prompts or build_part(evaluation, "prompts") or build_part(run.config, "prompts"))
    policy = run.policy()
    with policy.using("current" if run.best == "trained" else run.best):
        images = _generate(policy, wanted, list(range(seed, seed + count)), evaluation.get("call") or {})
    path = run.folder / "samples" / f"sampled_{checkpoint.step_of(run.checkpoint):06d}.png" if out is None else Path(out)
    return write_png(path, grid(images))


@torch.no_grad()
def _generate(policy: Policy, prompts: list[str], seeds: list[int], call: Mapping[str, Any]) -> Tensor:
    """``[prompts, seeds, C, H, W]`` in 0..1; videos ``[prompts, seeds, F, C, H, W]``."""
    rows = [prompt for prompt in prompts for _ in seeds]
    try:
        outputs = policy.generate(rows, seeds * len(prompts), **call)
    except (ValueError, TypeError) as error:
        raise UserError(f"prompt: the pipeline refuses {', '.join(prompts)}: {' '.join(str(error).split())}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim not in (4, 5):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(
            f"sample: got outputs {got} from this policy, takes images [batch, channels, height, width] or videos [batch, frames, ...]"
        )
    return outputs.unflatten(0, (len(prompts), len(seeds)))
