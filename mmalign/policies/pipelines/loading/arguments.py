"""What a config says of a pipeline's calls before anything is loaded: arguments that they take, read off their source, and their steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.policies.settings import Schedule
from mmalign.samplers import kernels
from mmalign.samplers.windows import all_but_last
from mmalign.types import Level, Prediction

CALL = re.compile(r"\n    def __call__\(\n(        self,\n(?:        .*\n)*)    \)")
ARGUMENT = re.compile(r"^        (\w+)\s*[:=,]", re.MULTILINE)


def call_arguments_of(arguments: Mapping[str, Any]) -> Iterable[str] | None:
    """The keywords that some pipeline's call takes; None where the pipeline is made by a function from outside of mmalign.

    arguments: of the node of ``policies.diffusers``. Which of the pipelines it is, a hub id does not tell; a name that none of them
    takes is wrong with all.
    """
    made_by = getattr(arguments.get("pipeline"), "function", None)
    if made_by is not None and not made_by.__module__.startswith("mmalign."):
        return None
    return all_arguments()


def random_steps_of(schedule: Schedule, call: Mapping[str, Any]) -> Tensor | None:
    """Which steps of a schedule will be random, ``[T]`` bool, on the plain path of a flow; None where the call begins late or says its own.

    Errors: UserError for a window that does not fit so many steps.
    """
    count = call.get("num_inference_steps", schedule.steps)
    if not isinstance(count, int) or {"strength", "sigmas", "timesteps", "denoising_end", "denoising_start"} & {*call}:
        return None
    kernel, nothing = schedule.kernel or kernels.flow_sde(noise_level=0.7), torch.zeros(1)
    levels = [Level(1 - s, s) for s in torch.linspace(1, 0, count + 1)]
    noisy = [bool((kernel(Prediction(nothing, nothing), nothing, *pair)[1] > 0).all()) for pair in pairwise(levels)]
    random = (schedule.window or all_but_last())(count, 0, torch.Generator().manual_seed(0))
    return random & torch.tensor(noisy) if len(random) == count else None


@cache
def all_arguments() -> frozenset[str]:
    """Every argument of the calls of diffusers' pipelines, and of the small worlds'."""
    return frozenset(
        name for path in _sources() for call in CALL.findall(path.read_text(encoding="utf-8")) for name in ARGUMENT.findall(call)
    )


def _sources() -> Iterator[Path]:
    spec = find_spec("diffusers")
    if spec is not None and spec.submodule_search_locations:
        yield from Path(spec.submodule_search_locations[0], "pipelines").rglob("pipeline_*.py")
    yield from (Path(__file__).parents[2] / "worlds").rglob("pipeline.py")
