"""What a config of 0.1.0 says, in the words of 0.2.0: settings that stood beside each other stand in records now.

Simple moves are those of the table that refuses old keys (`renamed`); what changed its form has a function here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.arguments.renamed import POLICY, RECIPE
from mmalign.migration.source import Entry

LOOPS = ("online", "offline")
COMMANDS = {"make_pairs": {"group_size": "group"}}
"""command -> its old keys -> what they are called."""

DEFAULTS = {
    "online": {"run.name": "online"},
    "offline": {"run.checkpoint_every": "200", "run.name": "offline", "optimizer.rate": "1.0e-5"},
}
"""What 0.1.0 took where a config did not say, and what a record that is there would take otherwise."""

READ_FILES = (
    "code_tests", "detection", "exact_match", "grounded_answer", "jigsaw", "judge_against", "judge_edit", "judge_edit_pairs",
    "judge_rubric", "math_answer", "object_counts", "relevance", "several_points", "subject_similarity", "testbench", "text_overlap",
)  # fmt: skip
"""Rewards that read answers from a file of their own, by ``path`` and ``key``."""

INTERPOLATION = re.compile(r"\$\{([A-Za-z_][\w.\[\]]*)\}")


@dataclass
class Translation:
    """A config on its way. root: of all its entries. node: the same as plain data, as it was.

    moves: old place -> new place. dropped: places that are gone on purpose. refused: what cannot be said any more, a line each. notes:
    what may mean something else now.
    """

    root: Entry
    node: Mapping[str, Any]
    moves: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, key: str, home: Entry | None = None) -> Entry | None:
        """The entry of that name, taken out of a group; a blank line over it goes to what stands behind it."""
        home = self.root if home is None else home
        entry = home.child(key)
        if entry is None:
            return None
        place = home.children.index(entry)  # type: ignore[union-attr]
        del home.children[place]  # type: ignore[union-attr]
        home.changed = True
        if "" in entry.above and place < len(home.children or ()) and "" not in (behind := home.children[place]).above:  # type: ignore[index]
            behind.above.insert(0, "")
        entry.above = [line for line in entry.above if line]
        return entry

    def group(self, path: str, place: int | None = None) -> Entry | None:
        """The group of that dotted path, made where there is none; None, and a line, where something else stands there."""
        home = self.root
        for name in path.split("."):
            entry = home.child(name)
            if entry is None:
                entry = Entry(name, children=[], braces=True, changed=True)
                home.changed = True
                home.children.insert(len(home.children) if place is None or home is not self.root else place, entry)  # type: ignore[union-attr, arg-type]
            if entry.children is None:
                if entry.text.strip() not in ("", "null", "~"):
                    self.refused.append(f"{path}: got {entry.text.strip()!r}, takes a mapping, into which older settings go")
                    return None
                self.dropped.append(path)  # a null
                entry.children, entry.text, entry.braces = [], "", True
            home = entry
        return home

    def put(self, entry: Entry, old: str, new: str, place: int | None = None) -> None:
        """Puts an entry at its new place."""
        path, _, key = new.rpartition(".")
        home = self.group(path, place)
        if home is None:
            return
        if home.child(key) is not None:
            self.refused.append(f"{old}: {new} is there too; takes one of them")
            return
        entry.key = key
        home.children.append(entry)  # type: ignore[union-attr]
        home.changed = True
        self.moves[old] = new


def translate(translation: Translation) -> None:
    """Puts every old key of a recipe, of its policies and of its rewards at its new place."""
    use = str(translation.node.get("use"))
    for rule in _RULES if use in LOOPS else (_renamed_keys, _weights, _policies, _reward_files):
        rule(translation, use)
    _interpolations(translation, translation.root)


def _policies(translation: Translation, use: str) -> None:
    for path, policy in _policy_entries("policy", translation.root.child("policy")):
        for old, new in POLICY.items():
            if (entry := translation.take(old, policy)) is not None:
                translation.put(entry, f"{path}.{old}", f"{path}.{new}")


def _policy_entries(path: str, entry: Entry | None) -> Iterator[tuple[str, Entry]]:
    """A policy, and the one that it is made of (``forward``)."""
    if entry is not None and entry.children is not None:
        yield path, entry
        yield from _policy_entries(f"{path}.of", entry.child("of"))


def _moves(translation: Translation, use: str) -> None:
    for old, new in RECIPE.items():
        if not re.fullmatch(r"[a-z_.]+", new) or old in ("judges", "metrics", "early_stop"):
            continue
        place = next((number for number, entry in enumerate(translation.root.children or ()) if entry.key == old), None)
        if (entry := translation.take(old)) is not None:
            last = new.startswith("run.")
            translation.put(entry, old, new, None if last else place)


def _evaluation(translation: Translation, use: str) -> None:
    for old in ("judges", "metrics", "early_stop"):
        if (entry := translation.take(old)) is not None:
            translation.put(entry, old, RECIPE[old])


def _decay(translation: Translation, use: str) -> None:
    entry, steps = translation.take("decay_steps"), translation.node.get("steps")
    decay_steps = translation.node.get("decay_steps")
    if entry is None:
        return
    translation.dropped.append("decay_steps")
    if decay_steps is None:
        return
    if decay_steps not in ("${steps}", steps):
        translation.refused.append(
            f"decay_steps: got {decay_steps}, takes the number of steps, {steps}, over all of which a linear decay goes now"
        )
        return
    entry.text = "linear"
    translation.put(entry, "decay_steps", "optimizer.decay")


def _weights(translation: Translation, use: str) -> None:
    """Rewards counted 1 where ``reward_weights`` did not name them; ``combine.weights`` names all that count."""
    place = next((number for number, entry in enumerate(translation.root.children or ()) if entry.key == "reward_weights"), None)
    entry, weights = translation.take("reward_weights"), translation.node.get("reward_weights")
    if entry is None:
        return
    if not weights:
        translation.dropped.append("reward_weights")
        return
    if translation.root.child("combine") is not None or not isinstance(weights, Mapping):
        got = f"got {weights!r}, takes numbers by name" if not isinstance(weights, Mapping) else "combine is there too; takes one of them"
        translation.refused.append(f"reward_weights: {got}")
        return
    group = Entry("combine", children=[Entry("use", "weighted_sum")], braces=True, changed=True)
    group.above, entry.above, group.beside, group.column, entry.beside = entry.above, [], entry.beside, entry.column, ""
    translation.root.children.insert(place or 0, group)  # type: ignore[union-attr]
    translation.put(entry, "reward_weights", "combine.weights")
    others = [name for name, _ in _items(translation.node.get("rewards")) if name not in weights]
    whole = [name for name in others if not any(str(key).startswith(f"{name}/") for key in weights)]
    for name in whole:
        entry.children.append(Entry(name, "1.0"))  # type: ignore[union-attr]
        entry.changed = True
    for name in others:
        if name not in whole:
            translation.notes.append(
                f"reward_weights: parts of {name} without a weight counted 1 in 0.1.0 and count nothing now; combine.weights takes them"
            )
    counting = [name for name, weight in weights.items() if weight != 0] + whole
    for name in [str(name) for name, weight in weights.items() if weight == 0 and counting]:
        if translation.take(name, entry) is not None:
            translation.dropped.append(f"reward_weights.{name}")


def _references(translation: Translation, use: str) -> None:
    """``references: {NAME: PLACE}`` and ``refresh: {NAME: N}`` or ``{NAME: {every: N, SET: share}}`` as records."""
    references = translation.root.child("references")
    for name, place in _items(translation.node.get("references")):
        entry = references.child(name) if references is not None else None
        if entry is not None and isinstance(place, str):
            entry.children, entry.text, entry.braces, entry.changed = [Entry("from", entry.text)], "", True, True
            translation.moves[f"references.{name}"] = f"references.{name}.from"
    refresh, values = translation.take("refresh"), translation.node.get("refresh")
    if values is not None and not isinstance(values, Mapping):
        translation.refused.append(f"refresh: got {values!r}, takes names of references")
    for name, how in _items(values):
        entry = refresh.child(name) if refresh is not None else None
        if entry is None:
            continue
        if not isinstance(how, Mapping):
            translation.put(
                Entry("every", entry.text, entry.above, entry.beside, entry.column), f"refresh.{name}", f"references.{name}.every"
            )
            continue
        for child in list(entry.children or ()):
            new = f"references.{name}.every" if child.key == "every" else f"references.{name}.shares.{child.key}"
            translation.put(child, f"refresh.{name}.{child.key}", new)
    if refresh is not None:
        translation.dropped.append("refresh")


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(str(key), item) for key, item in value.items()] if isinstance(value, Mapping) else []


def _renamed_keys(translation: Translation, use: str) -> None:
    for old, new in COMMANDS.get(use, {}).items():
        if (entry := translation.root.child(old)) is not None:
            entry.key, translation.moves[old] = new, new
            translation.root.changed = True


def _reward_files(translation: Translation, use: str) -> None:
    """Rewards read the columns of the prompts: a file of their own goes where it is the prompts' one, and cannot be said otherwise."""
    rows = _rows(translation.node.get("prompts"))
    evaluation = translation.root.child("evaluation")
    for path, home in (("rewards", translation.root), ("evaluation.judges", evaluation), ("oracle", translation.root)):
        group = home.child(path.rpartition(".")[2]) if home is not None else None
        nodes = [(path, group)]
        if path != "oracle":
            nodes = [(f"{path}.{entry.key}", entry) for entry in (group.children if group else None) or ()]
        for place, entry in nodes:
            if entry is not None and entry.child("path") is not None and entry.child("use").text in READ_FILES:  # type: ignore[union-attr]
                _reward_file(translation, place, entry, rows)


def _rows(prompts: Any) -> list[tuple[Any, Any]]:
    """(file, key) by which a reward reads the rows of these prompts; what reads pictures finds a prompt under two names."""
    if not isinstance(prompts, Mapping):
        return []
    columns = prompts.get("columns")
    own = columns.get("prompt") if isinstance(columns, Mapping) else None
    keys = [own] if own else [prompts.get("key", "prompt")]
    if not own and "key" not in prompts and prompts.get("use") == "picture_prompts":
        keys = ["prompt", "question"]
    return [(prompts.get("path"), key) for key in keys]


def _reward_file(translation: Translation, place: str, entry: Entry, rows: list[tuple[Any, Any]]) -> None:
    old = place.removeprefix("evaluation.")
    node: Any = translation.node
    for key in old.split("."):
        node = node[key]
    if (node["path"], node.get("key", "prompt")) not in rows:
        column = node.get("column", "answer")
        translation.refused.append(
            f"{old}.path: got {node['path']!r}, which is not the prompts' file by the same key; rewards read columns of the prompts: "
            f"put the column {column!r} there, and leave path and key out"
        )
        return
    for key in ("path", "key"):
        if translation.take(key, entry) is not None:
            translation.dropped.append(f"{old}.{key}")


def _defaults(translation: Translation, use: str) -> None:
    """What 0.1.0 took by default, where the record that is there now would take another number."""
    for place, text in DEFAULTS[use].items():
        path, _, key = place.rpartition(".")
        group = translation.root.child(path)
        alone = use == "offline" and place == "run.checkpoint_every"  # of a run without any settings too
        if (group is None and not alone) or (group is not None and (group.children is None or group.child(key) is not None)):
            continue
        group = translation.group(path)
        if group is not None and group.children is not None:
            group.children.append(Entry(key, text))
            group.changed = True


def _interpolations(translation: Translation, entry: Entry) -> None:
    """``${old.place}`` in values becomes the new place."""
    moved = lambda match: f"${{{new_place(match[1], translation.moves)}}}"  # noqa: E731
    text = INTERPOLATION.sub(moved, entry.text)
    if text != entry.text:
        entry.text = text
    for child in entry.children or ():
        _interpolations(translation, child)


def new_place(place: str, moves: Mapping[str, str]) -> str:
    """Where a dotted place of 0.1.0 is now: it goes where the nearest of those that hold it went."""
    for old in sorted(moves, key=len, reverse=True):
        if place == old or place.startswith((f"{old}.", f"{old}[")):
            return moves[old] + place[len(old) :]
    return place


_RULES: Sequence[Callable[[Translation, str], None]] = (
    _policies, _moves, _decay, _weights, _references, _evaluation, _reward_files, _defaults,
)  # fmt: skip
