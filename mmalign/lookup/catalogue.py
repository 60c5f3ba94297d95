"""Everything that has a name: its kind, where it is, how YAML and Python say it. What ``mmalign list`` and ``mmalign explain`` look up.

A kind is some rooms and, where a room holds several kinds (a small world has models, prompts, rewards and metrics), what its functions
return. Nothing is registered: names come from the files (`rooms.index`), and nothing is imported before it is explained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.arguments.signatures import nearest
from mmalign.lookup import settings
from mmalign.lookup.external_code import is_importable, is_offered, source_signature
from mmalign.lookup.settings import Setting
from mmalign.rooms import Entry, find, index, no_module, resource


class Kind(NamedTuple):
    """``what``: in a few words. rooms: where its names are. node: a line of YAML with ``{use}``. returns: annotations that tell its
    functions from others of the same rooms; empty: all."""

    what: str
    rooms: tuple[str, ...]
    node: str = ""
    returns: frozenset[str] = frozenset()


REWARDS = frozenset({"Scorer", "Reward", "Callable[..., Tensor]", "Callable[..., dict[str, Tensor]]", "Callable[..., Any]"})
PROMPTS = frozenset({"list[str]", "list[Any]", "list[Prompt]", "list[str | Prompt]", "list[list[dict[str, Any]]]"})

KINDS = {
    "recipes": Kind("loops that train, by data flow", ("recipes",), "use: {name}"),
    "methods": Kind("what is optimised", ("methods",), "method: {use}", frozenset({"Method"})),
    "policies": Kind("models as policies", ("policies", "worlds"), "policy: {use}",
                     frozenset({"DiffusersPolicy", "TransformersPolicy", "ForwardPolicy", "ScorerPolicy", "ImageTokensPolicy",
                                "ThinkingImagesPolicy", "TabularPolicy"})),
    "readers": Kind("what a reward model reads outputs with, beside transformers", ("policies.scorers",),
                    "policy: {{use: scorer, of: {use}}}", frozenset({"OpenClipReader", "NoisyLatentsReader", "NamedFeatures",
                                                                                        "ThinkingReader", "TwoViewsReader",
                                                                                        "ComparisonsReader"})),
    "heads": Kind("what makes a reward model's scores of what it has read", ("policies.scorers.heads",),
                  "policy: {{use: scorer, head: {use}}}", frozenset({"Head"})),
    "segments": Kind("where a text is cut into segments", ("policies.language.prompts.segments",), "policy: {{segments: {use}}}"),
    "rewards": Kind("what scores an output", ("rewards", "worlds"), "rewards: {{mine: {use}}}", REWARDS),
    "oracles": Kind("what compares the outputs of a prompt", ("rewards", "worlds"), "oracle: {use}", frozenset({"Oracle"})),
    "metrics": Kind("numbers of an evaluation that no method sees", ("evaluation", "worlds"), "evaluation: {{metrics: {{mine: {use}}}}}",
                    frozenset({"Callable[..., dict[str, float]]", "Metric"})),
    "combinations": Kind("several rewards as one", ("combinations",), "combine: {use}", frozenset({"Combination"})),
    "transforms": Kind("a reward on another scale", ("combinations",), "combine: {{use: weighted_sum, transforms: {{mine: {use}}}}}",
                       frozenset({"Transform"})),
    "guidance": Kind("alignment while a model samples, without training", ("guidance",), "guidance: {use}"),
    "settings": Kind("what stands beside these in a config, as records: batches, references, LoRA, ...", ()),
    "optimizers": Kind("how parameters follow their gradient", ("training.optimizers",), "optimizer: {use}"),
    "merges": Kind("how several models become one", ("merges",), "rule: {use}", frozenset({"Merge"})),
    "kernels": Kind("how a denoising step is made random", ("samplers.kernels",), "kernel: {use}", frozenset({"Kernel"})),
    "windows": Kind("which denoising steps are random, and trained", ("samplers.windows",), "window: {use}", frozenset({"Window"})),
    "branches": Kind("rows of a group that share a beginning", ("samplers.branches",), "branches: {use}", frozenset({"Branches"})),
    "environments": Kind("what replies to a policy in a conversation", ("environments",), "environment: {use}", frozenset({"Environment"})),
    "tools": Kind("what a policy may call in a conversation", ("environments",), "tools: {{mine: {use}}}", frozenset({"Tool"})),
    "worlds": Kind("small tasks with a known truth", ("worlds",), "{use}"),
    "data": Kind("prompts and preference records from files and hubs", ("data",), "records: {use}"),
    "suites": Kind("published benchmarks, of models and of rewards", ("evaluation.suites",), "suite: {use}",
                   frozenset({"Suite", "RewardSuite"})),
    "commands": Kind("what the command line does besides training", ("commands",)),
    "configs": Kind("complete experiments, one YAML each", ()),
}  # fmt: skip
"""word -> its kind."""

STANDS_UNDER = {
    **{kind.node.partition(":")[0]: word for word, kind in reversed(KINDS.items()) if ":" in kind.node},
    "head": "heads", "prompts": "data", "judges": "rewards", "metrics": "metrics", "transforms": "transforms",
    "simulator": "environments",
}  # fmt: skip
"""key of a config -> the kind of what stands under it."""

FLAT = ("recipes", "commands", "optimizers")
"""Kinds whose functions are ``mm.NAME``."""


class Listing(NamedTuple):
    """Something with a name. kind: a word of `KINDS`. ``meaning`` and ``paper`` as in `rooms.Entry`. place: its file. setting: which record
    it is, of ``settings``."""

    name: str
    kind: str
    meaning: str
    paper: str
    place: str
    setting: Setting | None = None


def everything(kind: str) -> list[Listing]:
    """What there is of a kind, by name. Errors: UserError for another word, with the nearest."""
    if kind not in KINDS:
        from mmalign.types import UserError  # imports torch, so only here

        raise UserError(f"{kind}: no such kind{nearest(kind, KINDS)}; takes one of {', '.join(KINDS)}")
    if kind == "configs":
        return [Listing(name, kind, _title(path), "", str(path)) for name, path in configs().items()]
    if kind == "settings":
        return [_setting(setting) for setting in sorted(settings.SETTINGS)]
    entries = {name: entry for room in KINDS[kind].rooms for name, (entry, *_) in index(f"mmalign.{room}").items()}
    return [_listing(entry, kind) for _, entry in sorted(entries.items()) if _is(entry, KINDS[kind])]


def lookup(name: str) -> list[Listing]:
    """What goes by a name, in every kind: ``kto``, ``rewards/jpeg`` for one kind alone, a key of a config (``batch``,
    ``policy.lora.rank``), a config, or an import path.

    A function of a world stands under what it is (a reward, a metric) where it is that. Errors: UserError with the nearest names.
    """
    from mmalign.types import UserError

    kind, _, short = name.partition("/")
    kinds = [kind] if kind in KINDS and short else list(KINDS)
    wanted = short if kind in KINDS and short else name
    matches = [listing for kind in kinds for listing in everything(kind) if listing.name == wanted]
    if "settings" in kinds:
        matches += [_setting(setting) for setting in settings.matching(wanted) if setting.key != wanted]
    special = [listing for listing in matches if listing.kind != "worlds"]
    if special or matches:
        return special or matches
    if "." in name:
        source = None if is_offered(name, whole=True) else source_signature(name)
        if not is_offered(name, whole=True) and source is None:
            raise UserError(f"{no_module(name)}" if not is_importable(name) else f"{name}: no source there says what it is")
        return [Listing(name, "", "", "", "" if source is None else str(source.file))]
    known = [listing.name for kind in kinds for listing in everything(kind)]
    holders = " and ".join(dict.fromkeys(setting.key for setting in settings.holding(name)))
    holder = f", but {holders} has such a key (`mmalign explain {holders.split()[0]}`)" if holders else nearest(name, known)
    raise UserError(f"{name}: nothing has this name{holder}; `mmalign list` says what there is")


def function(listing: Listing) -> Any:
    """What has that name, imported: mmalign's own, or an import path. Errors: UserError for a path that leads nowhere."""
    if listing.setting is not None:
        return listing.setting.load()
    for room in KINDS[listing.kind].rooms if listing.kind else ():
        if listing.name in index(f"mmalign.{room}"):
            return find(f"mmalign.{room}", listing.name)
    return find("mmalign.recipes", listing.name)


def python_name(listing: Listing) -> str:
    """What it is called behind ``mm.``, empty for what has no name there."""
    if listing.setting is not None:
        import mmalign

        name = listing.setting.record.rpartition(".")[2]
        return name if name in dir(mmalign) else ""
    if listing.kind in FLAT or not KINDS[listing.kind].rooms:
        return listing.name
    home = "evaluation" if listing.kind == "metrics" else KINDS[listing.kind].rooms[0]
    if "/worlds/" in f"/{listing.place}":
        home = "worlds"
    return f"{home.removeprefix('samplers.').partition('.')[0]}.{listing.name}"


def configs() -> dict[str, Path]:
    """short name -> file, of every config that comes with mmalign."""
    folder = resource("configs")
    return {str(file.relative_to(folder).with_suffix("")): file for file in sorted(folder.rglob("*.yaml"))}


def comment(path: Path) -> str:
    """The comment at the head of a YAML file, without its marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n".join(lines)


def _title(path: Path) -> str:
    words = " ".join(comment(path).split())
    end = min((place for place in (words.find(". "), words.find(": ")) if place > 0), default=len(words))
    return words[: end + 1].rstrip(":")


def _is(entry: Entry, kind: Kind) -> bool:
    return entry.function and (not kind.returns or entry.returns in kind.returns)


def _setting(setting: Setting) -> Listing:
    return Listing(setting.key, "settings", setting.meaning, "", setting.place, setting)


def _listing(entry: Entry, kind: str) -> Listing:
    return Listing(entry.name, kind, entry.meaning, entry.paper, entry.module.replace(".", "/") + ".py")


def words() -> Iterator[tuple[str, str, int]]:
    """(kind, what it is, how many there are) of every kind."""
    return ((word, kind.what, len(everything(word))) for word, kind in KINDS.items())
