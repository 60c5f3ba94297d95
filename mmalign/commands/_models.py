"""A model to sample from, by the name of a run, a config, a world, a class, a folder or a hub id; and guidance by its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.config import build_part, load
from mmalign.guidance.guide import by_name
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.forward import ForwardPolicy
from mmalign.policies.inspecting.loading import load_pipeline
from mmalign.policies.pipelines.calls.calling import arguments_of_call, classes_of, named_rows, refuse_arguments
from mmalign.rooms import find, index
from mmalign.runs.folder import found
from mmalign.runs.trained import refuse_external_code, trained
from mmalign.types import UserError, contents

Conditions = Callable[[list[str]], dict[str, Any]]
MODELS = ("negative", "worse", "base", "aligned", "a", "b")  # keywords of guidances that name a model


class Model(NamedTuple):
    """A pipeline, arguments of its call, prompts, rewards and judges that its config has, and the parameters to sample with.

    conditions: prompts -> arguments of the call that differ by prompt (a still to begin with), where there are such.
    """

    pipe: Any
    call: dict[str, Any]
    prompts: list[Any]
    rewards: dict[str, Callable[..., Any]]
    weights: dict[str, float]
    judges: dict[str, Callable[..., Any]]
    using: AbstractContextManager[Any]
    conditions: Conditions | None = None

    def arguments(self, prompts: Sequence[Any], **call: Any) -> dict[str, Any]:
        """Of the pipeline's call for some prompts: these, ``call`` over the model's own, and what differs by prompt."""
        return arguments_of(self.pipe, prompts, {**self.call, **call}, self.conditions)


def arguments_of(pipe: Any, prompts: Sequence[Any], call: Mapping[str, Any], conditions: Conditions | None) -> dict[str, Any]:
    """Arguments of a pipeline's call for some prompts, with their columns where they have any; by name, as pipelines order them anyhow.

    Errors: UserError for an argument that the pipeline's call does not take.
    """
    refuse_arguments(pipe, call, "call")
    accepts = arguments_of_call(pipe)
    return {**({} if conditions is None else conditions(contents(prompts))), **call, **named_rows(accepts, prompts, classes_of(pipe))}


def model_of(name: str, *, trust: bool = False) -> Model:
    """trust: the config of a run or of a file may name code outside of mmalign.

    Errors: UserError for a name that is none of these, for a policy that is no diffusers pipeline, and for outside code.
    """
    folder = found(name)
    if folder is not None:
        run = trained(folder, trust=trust)
        policy: Any = run.policy()
        return _of_config(run.config, policy, policy.using("current" if run.best == "trained" else run.best))
    if (worlds := index("mmalign.worlds")) and name in worlds:
        pipe = build_part({"pipeline": {"use": name}}, "pipeline")
        conditions = find("mmalign.worlds", f"{name}_call")() if f"{name}_call" in worlds else None
        return Model(pipe, {}, [], {}, {}, {}, nullcontext(), conditions)
    if name.endswith((".yaml", ".yml")) or (not Path(name).exists() and _is_config(name)):
        config = load(name, [])
        refuse_external_code(config, name, trust)
        return _of_config(config, build_part(config, "policy"), nullcontext())
    model = load_pipeline(name)
    model.pipe.set_progress_bar_config(disable=True)
    return Model(model.pipe, dict(model.trial_arguments), [], {}, {}, {}, nullcontext())


def of_pipe(pipe: Any) -> Model:
    """A pipeline that is there already, as it is, where it is not such a model itself. Errors: UserError for what is neither."""
    if isinstance(pipe, Model):
        return pipe
    if not isinstance(getattr(pipe, "components", None), Mapping):
        raise UserError(f"model: got a {type(pipe).__name__}, takes a pipeline, or the name of a run, a config, a world or a model")
    return Model(pipe, {}, [], {}, {}, {}, nullcontext())


def _is_config(name: str) -> bool:
    try:
        load(name, [])
    except UserError:
        return False  # then it is the id of a model
    return True


def _of_config(config: Mapping[str, Any], policy: Any, using: AbstractContextManager[Any]) -> Model:
    inner = policy.of if isinstance(policy, ForwardPolicy) else policy  # which samples with the one inside
    if not isinstance(inner, DiffusersPolicy):
        raise UserError("guidance: this model is no diffusers pipeline; language models are guided by mm.guidance.steered and its kin")
    evaluation = config.get("evaluation") or {}
    prompts = list(build_part(evaluation, "prompts") or build_part(config, "prompts") or [])
    judges, rewards = build_part(evaluation, "judges") or {}, build_part(config, "rewards") or {}
    weights = {name: float(weight) for name, weight in ((config.get("combine") or {}).get("weights") or {}).items()}
    call = {**inner.caller.call, **(evaluation.get("call") or {})}
    return Model(inner.pipe, call, prompts, rewards, weights, judges, using, inner.caller.conditions)


def reward_of(word: str, role: str = "reward") -> Callable[..., Any]:
    """A reward by its name, or a node of YAML (``{use: jpeg, want: large}``). Errors: UserError."""
    import yaml

    node = yaml.safe_load(word)
    node = {"use": node} if isinstance(node, str) else node
    if not isinstance(node, Mapping) or "use" not in node:
        raise UserError(f"--{role} {word}: takes a name of mm.rewards, or {{use: NAME, key: value}}")
    reward: Callable[..., Any] = build_part({"rewards": {role: dict(node)}}, "rewards")[role]
    return reward


def guidance_of(words: str) -> Any:
    """A guidance by its words: ``dps scale=5 start=0.2``. Errors: UserError."""
    name, *settings = words.split()
    given = keywords(settings, f"--guidance {name}")
    try:
        return by_name(name, {key: _model_of_run(value) if key in MODELS else value for key, value in given.items()})
    except UserError as error:
        if str(error).startswith("--guidance"):
            raise
        raise UserError(f"--guidance {words}: {error}") from error


def _model_of_run(value: Any) -> Any:
    """The denoiser of a run, where a word is its folder: a model of its own beside the one that is guided. Anything else as it is."""
    folder = found(value) if isinstance(value, str) else None
    if folder is None:
        return value
    run = trained(folder)
    policy: Any = run.policy()
    policy.sets.load({"trained": run.tensors[run.best]})
    inner = policy.of if isinstance(policy, ForwardPolicy) else policy
    if not isinstance(inner, DiffusersPolicy) or len(inner.denoisers) != 1:
        raise UserError(f"{value}: takes a run of a pipeline with one denoiser")
    return inner.denoiser


def keywords(words: Sequence[str], option: str = "--call") -> dict[str, Any]:
    """Keywords from words ``KEY=VALUE``, values as in YAML. Errors: UserError that begins with ``option``."""
    import yaml

    call = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"{option} {word}: takes KEY=VALUE")
        call[key] = yaml.safe_load(value)
    return call
