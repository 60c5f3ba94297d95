"""The config of a rehearsal: every node that needs weights or downloads gets a stand-in, and sizes shrink with their structure kept."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mmalign.arguments import signatures
from mmalign.config import build_part
from mmalign.config.nodes import ROOMS
from mmalign.policies.twins import rehearsal
from mmalign.records import Pair
from mmalign.rooms import find, index, resource
from mmalign.samplers.windows import all_but_last
from mmalign.types import UserError, contents

PROMPTS, GROUP, STEPS = 2, 4, 2  # at most, or exactly
MOST = 1024  # rows of a group that branches ask for
TWINS = ("policies.twins.rehearsal.twin", "policies.twins.texts.twin")  # of which there are several
SAID = 8  # tokens of a simulated user's, at most
SIDE = 16  # pixels; what every twin's VAE and patches divide


class RehearsalConfig(NamedTuple):
    """A config, what was said of its policy, and what stands in for what: names, with the reason where it is not weights."""

    node: dict[str, Any]
    notes: list[str]
    stand_ins: dict[str, str]


def rehearsal_config(config: Mapping[str, Any], *, kind: str | None = None) -> RehearsalConfig:
    """The config of a rehearsal; runs on this machine's CPU as the real one would. kind: the pipeline's class, where unknown.

    Prompts are the config's own. Errors: UserError that begins with the config's key.
    """
    twin = _policy(config["policy"], "policy", kind)
    node, stand_ins = _sizes(config), dict[str, str]()
    if isinstance(turns := twin.node.get("turns"), Mapping) and isinstance(turns.get("environment"), Mapping):
        environment = _environment(turns["environment"], "policy.turns.environment", stand_ins)
        twin = twin._replace(node={**twin.node, "turns": {**turns, "environment": environment}})
    node["policy"] = twin.node
    if "schedule" in twin.node and "method" in config and build_part(config, "method").reward_gradient is not None:
        node["policy"] = {**twin.node, "schedule": config["policy"]["schedule"]}  # such a method's numbers are numbers of steps
    if isinstance(schedule := node["policy"].get("schedule"), Mapping) and schedule.get("branches") is not None:
        node["batch"]["group"] = _group_of_branches(schedule)
    if isinstance(config.get("references"), Mapping):
        node["references"] = {
            name: _reference(value, f"references.{name}.policy", _weights(config["policy"])) for name, value in config["references"].items()
        }
    if isinstance(config.get("rewards"), Mapping):
        node["rewards"] = {name: _score(value, f"rewards.{name}", stand_ins) for name, value in config["rewards"].items()}
    if isinstance(config.get("oracle"), Mapping):
        node["oracle"] = _score(config["oracle"], "oracle", stand_ins)
    if "records" in config:
        node["records"] = _records(config["records"], twin, stand_ins)
    if isinstance(mix := config.get("mix"), Mapping) and "records" in mix:
        node["mix"] = {**mix, "records": _records(mix["records"], twin, stand_ins), "count": min(mix.get("count", GROUP), GROUP)}
    if isinstance(config.get("evaluation"), Mapping) or "prompts" in config:
        node["evaluation"] = _evaluation(config, twin, stand_ins)
    return RehearsalConfig(node, twin.remarks, stand_ins)


def _reference(node: Any, path: str, own: str) -> Any:
    """A reference's node, tiny where it is another model: one of the twins' width, as theirs have one size, and where it has another name
    than the policy's, ``own``, other weights: a teacher that is the student would teach nothing."""
    if not isinstance(node, Mapping) or not isinstance(node.get("policy"), Mapping):
        return node
    twin, name = _policy(node["policy"], path, None).node, _weights(node["policy"])
    inner = _innermost(twin)
    for key in ("pipeline", "model"):
        if name != own and isinstance(inner.get(key), dict) and inner[key].get("use") in TWINS:
            inner[key]["other"] = zlib.crc32(name.encode())
    return {**node, "policy": twin}


def _environment(node: Mapping[str, Any], path: str, stand_ins: dict[str, str]) -> dict[str, Any]:
    """An environment's node: a model in it as its twin, and one on a server as a user who always says the same."""
    if node.get("server") is not None:
        stand_ins[path] = f"{node['use']}, whose server is not asked"
        return {"use": "says", "words": "And then?"}
    if not isinstance(node.get("policy"), Mapping):
        return dict(node)
    call = node.get("call") or {}
    shorter = {"call": {**call, "max_completion": min(call["max_completion"], SAID)}} if "max_completion" in call else {}
    return {**node, "policy": _policy(node["policy"], f"{path}.policy", None).node, **shorter}


def _weights(policy: Mapping[str, Any]) -> str:
    """The name of the weights of a policy, or of what it wraps; empty where it has none."""
    inner = _innermost(policy)
    name = inner.get("pipeline", inner.get("model"))
    return name if isinstance(name, str) else ""


def _policy(node: Mapping[str, Any], path: str, kind: str | None) -> rehearsal.TwinPolicy:
    """By the function of the policy's name in ``policies.twins.rehearsal``, by ``rehearsal`` in its module, or what it wraps."""
    function = _function("policy", node["use"])
    inside = function.__module__.startswith("mmalign.policies.")
    home, name = (rehearsal, function.__name__) if inside else (sys.modules[function.__module__], "rehearsal")
    shrink = vars(home).get(name)
    try:
        if callable(shrink):
            twin: rehearsal.TwinPolicy = shrink(node, kind=kind)
            return twin
    except UserError as error:
        raise error if str(error).startswith(("policy", "--")) else UserError(f"{path}: {error}") from error
    for key, value in node.items():
        if isinstance(value, Mapping) and "use" in value and key not in ROOMS:
            inner = _policy(value, f"{path}.{key}", kind)
            return inner._replace(node={**node, key: inner.node})
    return rehearsal.TwinPolicy(dict(node), [f"the real policy: {node['use']}"])


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of the recipe: a micro-batch that holds a whole group still does, and one that does not still does not."""
    batch = dict(config.get("batch") or {})
    for key, most in (("prompts", PROMPTS), ("records", GROUP), ("updates", 2), ("epochs", 2)):
        if key in batch:
            batch[key] = min(batch[key], most)
    samples = "records" not in config or "prompts" in config  # rows of its own
    group = batch.get("group", 8 if "rewards" in config and samples else 2)
    if samples:
        batch["group"] = min(group, GROUP)
    if "micro_rows" in batch:
        whole = batch["micro_rows"] >= group
        batch["micro_rows"] = max(2, GROUP) if whole else min(batch["micro_rows"], max(1, min(group, GROUP) - 1))
    return {**config, "steps": STEPS, "batch": batch, "run": {**(config.get("run") or {}), "checkpoint_every": 1, "trackers": []}}


def _group_of_branches(schedule: Mapping[str, Any]) -> int:
    """The smallest group, of two rows or more, that the branches of a schedule divide."""
    window = build_part(schedule, "window") if schedule.get("window") is not None else all_but_last()
    trained, branches = window(schedule.get("steps", 10), 0, torch.Generator()), build_part(schedule, "branches")
    size, mistake = 1, UserError("")
    while size < MOST:
        size += 1
        try:
            branches(trained, trained, size, torch.Generator())
            return size
        except UserError as error:
            mistake = error
    raise mistake


def _evaluation(config: Mapping[str, Any], twin: rehearsal.TwinPolicy, stand_ins: dict[str, str]) -> dict[str, Any]:
    evaluation = dict(config.get("evaluation") or {})
    for key in ("judges", "metrics"):
        if isinstance(evaluation.get(key), Mapping):
            evaluation[key] = {name: _score(value, f"evaluation.{key}.{name}", stand_ins) for name, value in evaluation[key].items()}
    own = evaluation.get("prompts", config.get("prompts"))
    if own is not None:
        evaluation["prompts"] = contents(list(build_part({"prompts": own}, "prompts"))[:PROMPTS])
    evaluation.update(every=1, samples=min(evaluation.get("samples", 2), 2), columns=min(evaluation.get("columns", 2), 2))
    real = _innermost(config["policy"]).get("call") or {}
    wanted = evaluation.get("call") or {}
    call = {key: _small(key, value, real.get(key), twin.call.get(key, value)) for key, value in wanted.items()}
    evaluation["call"] = {**call, "num_inference_steps": 3} if twin.call or "num_inference_steps" in call else call
    return evaluation


def _innermost(policy: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node of the policy that has a pipeline or a model: itself, or what it wraps."""
    while "pipeline" not in policy and "model" not in policy and isinstance(policy.get("of"), Mapping):
        policy = policy["of"]
    return policy


def _small(key: str, value: Any, real: Any, small: Any) -> Any:
    """An argument of the evaluation's call as the twin has it: a side of another size than training's keeps their ratio."""
    if key not in rehearsal.SIDES or not isinstance(real, int) or real == value:
        return small
    return max(SIDE, round(small * value / real / SIDE) * SIDE)


def _score(node: Any, path: str, stand_ins: dict[str, str]) -> Any:
    """A reward's node: as it is where it can be built without weights, a stand-in otherwise; what it wraps first."""
    if not isinstance(node, Mapping) or "use" not in node:
        return node
    function = _function("rewards", node["use"])
    takes, _ = signatures.parameters(function)
    if path == "oracle" and "server" in takes:
        stand_ins[path] = str(node["use"])
        return {"use": "rewards._shared.stand_in.stand_in_of_pairs", "name": str(node["use"])}
    if "weights" in takes or "server" in takes:
        stand_ins[path] = str(node["use"])
        return {"use": "rewards._shared.stand_in.stand_in", "name": str(node["use"])}
    inner = {key: _inside(key, value, f"{path}.{key}", stand_ins) for key, value in node.items()}
    try:
        if path == "oracle":
            build_part({"oracle": inner}, "oracle")
        else:
            kind = "metrics" if path.startswith("evaluation.metrics.") else "rewards"
            build_part({kind: {"one": inner}}, kind)
    except Exception as error:  # whatever a reward raises while it loads
        stand_ins[path] = f"{node['use']}, which cannot be built here: {' '.join(str(error).removeprefix('rewards.one: ').split())[:100]}"
        return {"use": "rewards._shared.stand_in.stand_in", "name": str(node["use"])}
    if "column" in takes:
        stand_ins[path] = f"{node['use']}, as random weights get no answer right, and all rows would be tied"
        return {"use": "rewards._shared.stand_in.stand_in", "name": str(node["use"])}
    return inner


def _inside(key: str, value: Any, path: str, stand_ins: dict[str, str]) -> Any:
    """What a reward's node holds: other rewards, models, and environments."""
    if key == "policy" and isinstance(value, Mapping) and "use" in value:
        return _policy(value, path, None).node
    if key == "simulator" and isinstance(value, Mapping):
        return _environment(value, path, stand_ins)
    return _score(value, path, stand_ins)


def _records(node: Any, twin: rehearsal.TwinPolicy, stand_ins: dict[str, str]) -> Any:
    """Records: those of a world and local files at the twin's size; pairs of noise where they are on the hub or cannot be decoded.

    Of records around others those inside, and what they say besides: rewards, and how the policy draws.
    """
    if isinstance(node, Mapping) and ("of" in node or node.get("use") == "own_samples"):
        around = {**node, **({"of": _records(node["of"], twin, stand_ins)} if "of" in node else {})}
        if isinstance(node.get("rewards"), Mapping):
            around["rewards"] = {name: _score(value, f"records.rewards.{name}", stand_ins) for name, value in node["rewards"].items()}
        if isinstance(node.get("call"), Mapping) and "num_inference_steps" in node["call"]:
            around["call"] = {**node["call"], "num_inference_steps": 2}
        return around
    if isinstance(node, Mapping) and node.get("use") == "hub_texts":
        stand_ins["records"] = f"pairs of words; {node.get('name', 'the hub')} is not downloaded"
        return {"use": "commands._rehearsal_config.pairs_of_words"}
    if isinstance(node, Mapping) and node.get("use") == "hub_picture_texts":
        stand_ins["records"] = f"pairs about pictures of shapes; {node.get('name', 'the hub')} is not downloaded"
        return {"use": "picture_texts", "path": str(resource("assets/pictures/pairs.jsonl"))}
    if not isinstance(node, Mapping) or twin.shape is None or twin.size is None or node.get("use") not in index("mmalign.data"):
        return node
    small = {**node}
    takes, _ = signatures.parameters(_function("records", node["use"]))
    if "size" in takes:
        small["size"] = list(twin.size) if not isinstance(node.get("size"), int) or twin.size[0] != twin.size[1] else twin.size[0]
    if "frames" in takes and len(twin.shape) == 4:
        small["frames"] = twin.shape[0]
    if node["use"] != "hub_pairs":
        try:
            build_part({"records": small}, "records")
            return small
        except UserError as error:
            if "which is not installed" not in str(error):
                raise
            stand_ins["records"] = f"pairs of noise, as this machine cannot decode them: {str(error).removeprefix('records: ')}"
    else:
        stand_ins["records"] = f"pairs of noise; {node.get('name', 'the hub')} is not downloaded"
    return {"use": "commands._rehearsal_config.pairs_of_noise", "shape": list(twin.shape)}


def pairs_of_noise(*, shape: list[int], count: int = 8) -> list[Pair]:
    """Pairs of random outputs ``shape`` in 0..1, always the same; each is one image or video."""
    rng = torch.Generator().manual_seed(0)
    outputs = torch.rand(count, 2, *shape, generator=rng)
    return [Pair(f"prompt {n}", first, second, 1.0, f"noise:{n}") for n, (first, second) in enumerate(outputs)]


def pairs_of_words(*, count: int = 8) -> list[Pair]:
    """Pairs of short answers to conversations, always the same."""
    turns = [[{"role": "user", "content": f"What comes after {n}?"}] for n in range(count)]
    return [Pair(turn, f"{n + 1}.", f"Not {n}.", 1.0, f"words:{n}") for n, turn in enumerate(turns)]


def _function(key: str, name: str) -> Any:
    rooms = ROOMS.get(key, (key,))
    home = next((room for room in rooms if name in index(f"mmalign.{room}")), rooms[0])
    return find(f"mmalign.{home}", name)
