"""What keys of a config say of each other: a method and its policy, arguments of calls, and names that have to be somebody's."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from mmalign.arguments.facts import of_latents
from mmalign.arguments.raised import said
from mmalign.arguments.ranges import MANY, Range, outside_of, within
from mmalign.arguments.renamed import renamed
from mmalign.arguments.signatures import Record, nearest, parameters
from mmalign.config.instantiate import METHODS, Call, Review, Unread, carry_out, harmless, home
from mmalign.config.parsing import one_line
from mmalign.config.prompt_columns import missing_columns

COUNTED: dict[str, Range] = {
    **dict.fromkeys(("num_inference_steps", "height", "width", "num_frames", "max_sequence_length", "max_completion"), within(1, MANY)),
    "top_k": within(0, MANY),
}  # fmt: skip
CALLED_WITH: dict[str, Range] = {
    **COUNTED,
    **dict.fromkeys(("guidance_scale", "true_cfg_scale"), within(-math.inf, above=True, below=True)),
    "temperature": within(0, below=True), "top_p": within(0, 1, above=True), "strength": within(0, 1), "hidden_media": within(0, 1),
}  # fmt: skip
"""What numbers of a policy's calls may be, in diffusers' words and in those of language models; those of ``COUNTED`` are whole."""
ALWAYS = ("temperature", "top_p", "top_k", "max_completion", "hidden_media")
"""Of them those of language models, which have no None."""

ALIKE = ("temperature", "template", "times", "draws", "target")
"""Keywords of policies that have to be the same where one is another's reference: those of what is scored."""

SETS = ("current", "ref", "previous", "trained", "ema", "best", "start", "half", "ended")
"""Sets of parameters that a run makes by itself, some of them for one method alone."""


def crosschecked(call: Call, review: Review) -> None:
    """Adds to a review what is wrong between the keys of a plan."""
    review.errors.extend(_calls(call))
    review.errors.extend(_other_kinds(call))
    review.errors.extend(_mixed(call, review))
    review.errors.extend(_unsuited(call))
    review.errors.extend(_names(call))
    review.errors.extend(_shares(call))
    review.errors.extend(_without_latents(call))
    if not review.errors:
        review.errors.extend(missing_columns(call))
    if not any(line.startswith(("method.", "method:")) for line in review.errors):
        review.errors.extend(_incompatible(call, review))


def _incompatible(call: Call, review: Review) -> list[str]:
    policy, method = call.arguments.get("policy"), call.arguments.get("method")
    if isinstance(method, Call) and home(method.function).startswith("mmalign.") and not home(method.function).startswith(METHODS):
        return [] if isinstance(method.function, Unread) else [f"{method.path}.use: got {method.name!r}, which is none of the methods"]
    if not isinstance(policy, Call) or not isinstance(method, Call) or not harmless(method, review):
        return []
    adapter = _adapter(policy)
    if adapter is None:
        return []
    from mmalign.needs import as_bound  # imports torch, so only here
    from mmalign.types import Encoder

    takes = parameters(call.function)[0].get("policy")
    if adapter.kind == "transition" and takes is not None and takes.annotation is Encoder:
        return [
            f"policy: {policy.name} learns from steps that it samples itself, and records hold finished outputs; {as_bound(policy.name)}"
        ]
    built, mistakes = _built(method)
    if mistakes:
        return mistakes
    wrong = _lacking(policy, adapter, method, built)
    evaluation = call.arguments.get("evaluation")
    if adapter.kind == "score" and (evaluation is None or (isinstance(evaluation, Call) and evaluation.arguments.get("records") is None)):
        wrong.append("evaluation.records: missing; a reward model is evaluated on records that it is not trained on")
    if built.unguided and _keyword(policy, "guided") is True:
        wrong.append(
            f"{policy.path}.guided: rows are sampled with guidance and predicted without, {method.name} takes one policy; takes false"
        )
    if built.reward_gradient is not None and built.reward_gradient.utility is not None:
        wrong.extend(_without_gradient(call, method.name))
    return [*wrong, *_steps(policy, adapter, built, review)]


def _built(method: Call) -> tuple[Any, list[str]]:
    """The method of a node, or the line that says why there is none."""
    from mmalign.types import Method, UserError

    try:
        built = carry_out(method)
    except Exception as error:  # whatever a factory raises is the user's to know, as one line among the others
        line = one_line(error) if isinstance(error, UserError) else said(error)
        return None, [line if line.startswith(method.path) else f"{method.path}: {line}"]
    if not isinstance(built, Method):
        return None, [f"{method.path}.use: got {method.name!r}, which gives a {type(built).__name__}; takes a function that gives a Method"]
    return built, []


def _lacking(policy: Call, adapter: Any, method: Call, built: Any) -> list[str]:
    """What a built method needs and the policy does not give: tables of steps, and steps of its kinds."""
    from mmalign.needs import as_bound, lacking

    gives, wrong = adapter.gives, list[str]()
    for option, more in adapter.gives_with.items():
        gives = gives | {word for word in _list(policy.arguments.get(option)) if isinstance(word, str) and word in more}
    if lacks := lacking(built, gives):
        given = ", ".join(sorted(gives)) or "none of them"
        wrong.append(f"{method.path}: {method.name} needs {', '.join(lacks)}; the policy {policy.name} gives {given}")
    if adapter.kind not in built.kinds:
        kinds = ", ".join(sorted(built.kinds))
        line = f"; {as_bound(policy.name)}" if adapter.kind == "transition" and "bound" in built.kinds else ""
        wrong.append(f"{method.path}: {method.name} takes steps of kind {kinds}; the policy {policy.name} gives {adapter.kind}{line}")
    return wrong


def _mixed(call: Call, review: Review) -> list[str]:
    """Records that are mixed in, where the policy takes none, or cannot be taught by their method."""
    policy, mix = call.arguments.get("policy"), call.arguments.get("mix")
    if not isinstance(policy, Call) or not isinstance(mix, Call) or (adapter := _adapter(policy)) is None:
        return []
    if adapter.kind == "transition":
        from mmalign.needs import as_bound

        return [f"{mix.path}: {policy.name} learns from steps that it samples itself, and records hold finished outputs; "
                f"{as_bound(policy.name)}"]  # fmt: skip
    method = mix.arguments.get("method")
    if not isinstance(method, Call) or not harmless(method, review):
        return []
    built, mistakes = _built(method)
    return mistakes or _lacking(policy, adapter, method, built)


LOADERS = {"texts": "{0}texts, or {0}picture_texts where prompts show pictures", "images": "{0}pairs"}
"""What reads records from files or (``hub_``) from the hub, by what a policy learns from."""


def _unsuited(call: Call) -> Iterator[str]:
    """Loaders of records whose module says, as ``OUTPUTS``, that they read outputs of another kind than the policy learns from."""
    policy, mix, evaluation = (call.arguments.get(key) for key in ("policy", "mix", "evaluation"))
    if not isinstance(policy, Call) or (adapter := _adapter(policy)) is None or not adapter.learns_from:
        return
    given = [call.arguments.get("records"), *(part.arguments.get("records") for part in (mix, evaluation) if isinstance(part, Call))]
    for loader in (inner for records in given for inner in _sources(records)):
        name = loader.name.rpartition(".")[2]
        kind = (_module_says(loader, "OUTPUTS") or {}).get(name, adapter.learns_from)
        if kind != adapter.learns_from:
            reads = {"texts": "texts", "images": "images or videos"}
            yield (
                f"{loader.path}.use: {name} reads {reads[kind]}, and the policy {policy.name} learns from "
                f"{reads[adapter.learns_from]}; takes {LOADERS[adapter.learns_from].format('hub_' if name.startswith('hub_') else '')}"
            )


def _sources(records: Any) -> Iterator[Call]:
    """Records, and those that they are made of: under ``of``, one or several by name."""
    if isinstance(records, Call):
        yield records
        yield from _sources(records.arguments.get("of"))
    for inner in records.values() if isinstance(records, Mapping) else ():
        yield from _sources(inner)


def _without_gradient(call: Call, method: str) -> Iterator[str]:
    """Rewards whose module says that they have no gradient, where a method learns from nothing else."""
    rewards = call.arguments.get("rewards")
    for reward in rewards.values() if isinstance(rewards, Mapping) else ():
        for inner in _inside(reward):
            if _module_says(inner, "DIFFERENTIABLE") is False:
                yield f"{inner.path}: {inner.name} has no gradient, and {method} learns from nothing else; takes a differentiable reward"


def _without_latents(call: Call) -> Iterator[str]:
    """Rewards and judges that score latents, by their module or by themselves, where the policy has none."""
    policy, evaluation = call.arguments.get("policy"), call.arguments.get("evaluation")
    judges = evaluation.arguments.get("judges") if isinstance(evaluation, Call) else None
    if not isinstance(policy, Call) or (adapter := _adapter(policy)) is None or "latents" in adapter.gives:
        return
    for inner in _inside({"rewards": call.arguments.get("rewards"), "judges": judges}):
        if _module_says(inner, "OF_LATENTS") or of_latents(inner.function):
            yield f"{inner.path}: scores latents, and the policy {policy.name} has none; takes a policy of diffusers"


def _module_says(call: Call, name: str) -> Any:
    """A fact that the module of a function states of what it makes; None where it says nothing, or was not imported."""
    module = sys.modules.get(home(call.function))
    return None if module is None else vars(module).get(name)


def _inside(value: Any) -> Iterator[Call]:
    """A call, and those among its arguments."""
    if isinstance(value, Call):
        yield value
        yield from _inside(value.arguments)
    for inner in value.values() if isinstance(value, Mapping) else ():
        yield from _inside(inner)


def _steps(policy: Call, adapter: Any, method: Any, review: Review) -> list[str]:
    """A schedule that its window does not fit, or that leaves the method nothing to train."""
    import torch

    from mmalign.types import UserError

    schedule, call = _keyword(policy, "schedule"), policy.arguments.get("call")
    if not isinstance(schedule, (Call, Record)) or not harmless(schedule, review):  # one that could not be planned
        return []
    path = schedule.path if isinstance(schedule, Call) else f"{policy.path}.schedule"
    try:
        random = adapter.random_steps(carry_out(schedule), call if isinstance(call, Mapping) else {})
    except UserError as error:
        return [f"{path}.window: {one_line(error)}"]
    if random is None or (method.reward_gradient is None and bool(random.any())):
        return []
    if method.reward_gradient is None:
        return [f"{path}: none of {len(random)} steps is random, so there is nothing to train; takes more steps, a window with one that is "
                "not the last, or a kernel with noise"]  # fmt: skip
    try:
        method.reward_gradient.plan(random, torch.Generator().manual_seed(0))
    except UserError as error:
        return [one_line(error)]
    return []


def _others(call: Call) -> list[Call]:
    """The policies that references are, other models."""
    references = call.arguments.get("references")
    records = references.values() if isinstance(references, Mapping) else ()
    policies = [record.arguments.get("policy") for record in records if isinstance(record, Call)]
    return [policy for policy in policies if isinstance(policy, Call)]


def _other_kinds(call: Call) -> Iterator[str]:
    """Other models that are no policies of the trained one's kind, and so score other rows."""
    policy = call.arguments.get("policy")
    if not isinstance(policy, Call):
        return
    for other in _others(call):
        if home(other.function) != home(policy.function):
            yield f"{other.path}.use: got {other.name}, and policy is {policy.name}; takes {policy.name}, which scores the same rows"
            continue
        for key in ALIKE:
            here, there = _keyword(policy, key), _keyword(other, key)
            if here is not None and there is not None and here != there:
                yield f"{other.path}.{key}: got {there!r}, and policy.{key} is {here!r}; takes the same, as it scores the same rows"


def _keyword(call: Call, key: str) -> Any:
    """A keyword of a call, or what it is by default; None where the function takes none."""
    parameter = None if isinstance(call.function, Unread) else inspect.signature(call.function).parameters.get(key)
    return None if parameter is None else call.arguments.get(key, parameter.default)


def _shares(call: Call) -> Iterator[str]:
    """Sets of parameters that a reference is mixed of, and that nothing makes."""
    by_name = call.arguments.get("references")
    references = by_name if isinstance(by_name, dict) else {}
    known, soups = list(dict.fromkeys([*SETS, *references])), dict[str, list[str]]()
    for name, reference in references.items():
        shares = reference.arguments.get("shares") if isinstance(reference, Call) else None
        for part in shares if isinstance(shares, dict) else ():
            if part not in known:
                yield f"references.{name}.shares.{part}: is no set of parameters{nearest(str(part), known)}; takes {', '.join(known)}"
        soup = reference.arguments.get("soup") if isinstance(reference, Call) else None
        soups[str(name)] = [part for part in soup or () if part in references and not name == part == "ref"]
    try:
        TopologicalSorter(soups).prepare()
    except CycleError as error:
        yield f"references.{error.args[1][-1]}.soup: is made of itself ({' of '.join(reversed(error.args[1]))}); takes folders and runs"


REWARD_NAMES = (
    *("weights", "transforms", "limits", "gates", "eligible", "order", "worst", "heads"),  # name -> what is said of it
    *("of", "required", "judges", "reward", "nominal"),
)
"""Keywords of combinations that hold names of rewards."""


def _names(call: Call) -> Iterator[str]:
    """Names of rewards and judges that are said elsewhere and that nobody has."""
    evaluation, combine = call.arguments.get("evaluation"), call.arguments.get("combine")
    rewards = call.arguments.get("rewards")
    reward_names = list(rewards) if isinstance(rewards, dict) else []
    settings = evaluation.arguments if isinstance(evaluation, Call) else {}
    judges = list(settings["judges"]) if isinstance(settings.get("judges"), dict) else []
    stop = settings.get("stop")
    judge = stop.arguments.get("judge") if isinstance(stop, Call) else None
    scorers = reward_names + judges + (["held_out"] if settings.get("records") is not None else [])
    if isinstance(judge, str) and scorers and judge.partition("/")[0] not in scorers:
        yield f"evaluation.stop.judge: got {judge!r}, takes one of {', '.join(scorers)}{nearest(judge, scorers)}"
    for name in sorted({*reward_names} & {*judges}):
        yield f"evaluation.judges.{name}: a reward has that name too; takes another"
    if isinstance(combine, Call) and reward_names and home(combine.function).startswith("mmalign."):
        for key in REWARD_NAMES:
            said = combine.arguments.get(key)
            names = [said] if isinstance(said, str) else said
            for name in names if isinstance(names, (dict, list)) else ():
                if not any(name == reward or str(name).startswith(f"{reward}/") for reward in reward_names):
                    near = nearest(str(name), reward_names)
                    yield f"combine.{key}.{name}: no reward has this name{near}; takes {', '.join(reward_names)}"


def _list(value: Any) -> list[Any]:
    """A list as it is, and nothing for what should be one and is not, which is another mistake."""
    return value if isinstance(value, list) else []


def _adapter(policy: Call) -> Any:
    """What the module of a policy says of those it makes (``types.Adapter``); None where it says nothing, or was not imported."""
    module = sys.modules.get(home(policy.function))
    return None if module is None else vars(module).get("ADAPTER")


def _calls(call: Call) -> Iterator[str]:
    """Keywords of a policy's calls that no such call takes: under ``call`` of the policy, the evaluation and records."""
    policy, evaluation = call.arguments.get("policy"), call.arguments.get("evaluation")
    if not isinstance(policy, Call):
        return
    policies = [policy, *_others(call)]
    policies += [
        inner for outer in policies for inner in outer.arguments.values() if isinstance(inner, Call) and inner.path == f"{outer.path}.of"
    ]
    own = [(f"{node.path}.call", node.arguments.get("call"), node) for node in policies]
    theirs = evaluation.arguments.get("call") if isinstance(evaluation, Call) else None
    records = call.arguments.get("records")
    drawn = records.arguments.get("call") if isinstance(records, Call) else None  # for rows that records leave to the policy
    asked = {"evaluation.call": theirs, "call": call.arguments.get("call"), "records.call": drawn}
    there = {f"{node.path}.call" for node in policies} | asked.keys()
    others = [node for node in _inside(call) if node.arguments.get("call") and f"{node.path}.call" not in there]
    spoken = [(f"{node.path}.call", node.arguments["call"], _speaker(node, policy)) for node in others]
    for path, arguments, node in [*own, *spoken, *((path, arguments, policy) for path, arguments in asked.items())]:
        if isinstance(arguments, Mapping) and arguments and (known := _arguments(node)) is not None:
            yield from _wrong_arguments(path, arguments, known)


def _speaker(node: Call, policy: Call) -> Call:
    """The policy that a node's ``call`` is for, such as a simulated user's: its own, or else the one that is trained."""
    own = node.arguments.get("policy")
    return own if isinstance(own, Call) else policy


def _wrong_arguments(path: str, arguments: Mapping[str, Any], known: Any) -> Iterator[str]:
    for key, value in arguments.items():
        if key not in known:
            yield f"{path}.{key}: " + (renamed(str(key), path) or f"no argument of this policy's calls{nearest(str(key), known)}")
        elif (allowed := CALLED_WITH.get(key)) is not None and (value is not None or key in ALWAYS):
            kinds = (int,) if key in COUNTED else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                yield f"{path}.{key}: got {value!r}, takes {'a whole number' if key in COUNTED else 'a number'}"
            elif outside_of(value, allowed):
                yield f"{path}.{key}: got {value}, takes {allowed.takes(value)}"


def foreseen(call: Call, built: Mapping[str, Any]) -> None:
    """What a recipe says of its data by its ``FORESEEN``, where the policy is not built yet. Errors: UserError."""
    policy, recipe = call.arguments.get("policy"), sys.modules.get(home(call.function))
    ask = None if recipe is None else vars(recipe).get("FORESEEN")
    if ask is not None and isinstance(policy, Call) and (adapter := _adapter(policy)) is not None:
        ask(adapter, policy.arguments, built)


def _arguments(policy: Call) -> Any:
    """The keywords of a policy's calls; None where any may be right."""
    adapter = _adapter(policy)
    unread = any(isinstance(value, Call) and isinstance(value.function, Unread) for value in policy.arguments.values())
    return None if adapter is None or unread else adapter.call(policy.arguments)
