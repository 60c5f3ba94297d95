"""From a pipeline that was looked at to a config to start from."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from mmalign.policies.pipelines.calls.calling import MEDIA
from mmalign.policies.pipelines.loading import memory

WORDS = "[three red foxes in the snow, two blue birds on a wire]"
CLASSES = '["3", "2"]   # numbers of classes'


def starting_yaml(
    pipe: Any, *, node: Any, call: Mapping[str, Any], trial_arguments: Mapping[str, Any], path: str | None, adapted: bool
) -> str:
    """A config to start from; ``mmalign check`` passes on it."""
    defaults = defaults_of(pipe)
    plain_call = {key: value for key, value in call.items() if isinstance(value, (bool, int, float, str)) and key != "num_inference_steps"}
    guidance = plain_call.pop("guidance_scale", defaults.get("guidance_scale"))
    missing = [key for key in trial_arguments if key in MEDIA and key not in call]
    name = "".join(c if c.isalnum() else "-" for c in type(pipe).__name__.removesuffix("Pipeline").lower())
    kernel = "{use: ddim, eta: 1.0}" if path is not None and not path.startswith("flow") else "{use: flow_sde, noise_level: 0.7}"
    lines = [
        f"# A start for {type(pipe).__name__}, from `mmalign inspect`. Put your prompts and reward in, then check and train.",
        *(f"# It needs {key}, which YAML cannot say: give {key} in Python, under call or from conditions." for key in missing),
        "use: online",
        "policy:",
        "  use: diffusers",
        f"  pipeline: {json.dumps(node)}",
        f"  lora: {{rank: 32{'' if adapted else ', targets: all-linear'}}}",
        f"  schedule: {{steps: 10, {f'guidance: {guidance}, ' if isinstance(guidance, (int, float)) else ''}kernel: {kernel}}}",
        *([f"  call: {json.dumps(plain_call)}"] if plain_call else []),
        "  # memory:",
        *(f"  #   {option:<27} # {what}" for option, what in memory.options(pipe)),
        "method: {use: flow_grpo, ratio: per_step, clip: 0.2}   # clip in nats of the whole latent",
        f"prompts: {CLASSES if 'class_labels' in parameters_of(pipe) else WORDS}",
        "steps: 100",
        "batch: {prompts: 2, group: 8, micro_rows: 4}",
        "optimizer: {use: adamw, rate: 1.0e-4, ema: 0.9}",
        "rewards:",
        "  novelty: {use: novelty, scale: 0.2}   # in place of your own: {use: my_module.my_reward}",
        "evaluation: {every: 10, samples: 4}",
        f"run: {{name: {name}}}",
    ]
    return "\n".join(lines) + "\n"


def defaults_of(pipe: Any) -> dict[str, Any]:
    """Defaults of the arguments of a pipeline's call."""
    parameters = parameters_of(pipe).values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def parameters_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a pipeline's call."""
    return inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
