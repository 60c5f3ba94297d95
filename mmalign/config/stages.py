"""Stages of ``rounds``: nodes that are built one after the other, each when it is its turn, since they name what the ones before made.

Two small nodes stand for what is not known before: ``{stage: sample}`` is the file or the run that a stage made, and
``{by_round: [8, 16]}`` a value for each round. Everything else in a stage is a config as it stands by itself, and is checked as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.arguments.signatures import nearest
from mmalign.config.crosschecks import crosschecked
from mmalign.config.instantiate import Call, Review, plan
from mmalign.config.nodes import Product
from mmalign.rooms import index

RECIPE = "rounds"
REFERENCE = frozenset({"stage", "round", "otherwise", "key"})
LOOKED_AT = 2
"""Rounds that are checked at least: the first, which has nothing before it, and one that has."""


class Turn(NamedTuple):
    """A stage in a round. stages: those of the config, by name in their order. folder: of the run. round: from 1. seed: of the run."""

    stages: Mapping[str, Any]
    folder: Path
    round: int
    name: str
    seed: int = 0

    @property
    def place(self) -> int:
        return [*self.stages].index(self.name)

    @property
    def node(self) -> Any:
        return self.stages[self.name]

    @property
    def home(self) -> Path:
        """Where this round's products are."""
        return self.folder / f"round_{self.round:03d}"

    @property
    def product(self) -> Path | None:
        """The file, or the folder of a run, that this stage makes; None for a command that writes nothing."""
        name = named(self.name, self.node)
        return None if name is None else self.home / name


def turns(stages: Mapping[str, Any], folder: Path, *, rounds: int, seed: int = 0) -> Iterator[Turn]:
    """Every stage of every round, in order."""
    for number in range(1, rounds + 1):
        for name in stages:
            yield Turn(stages, folder, number, name, seed)


def named(name: str, node: Mapping[str, Any]) -> str | None:
    """What the product of a stage is called in its round's folder: ``out``, or the name of the run."""
    if node.get("use") in index("mmalign.recipes"):
        run = node.get("run")
        return str(run.get("name", name)) if isinstance(run, Mapping) else name
    return None if node.get("out") is None else str(node["out"])


def config_of(turn: Turn, errors: list[str]) -> dict[str, Any]:
    """The config that a stage is in its round: with products by their paths, and the folder, the name and the seed that it does not say.

    The seed is the run's, and another one in every stage of every round. errors: gets a line for each mistake.
    """
    node = {str(key): value for key, value in _Resolver(turn, errors).mapping(turn.node, "").items()}
    seed = turn.seed + 1000 * (turn.round - 1) + turn.place
    if node.get("use") in index("mmalign.recipes"):
        run = node.get("run", {})
        if isinstance(run, Mapping):
            node["run"] = {"name": turn.name, "seed": seed, **run, "folder": str(turn.home)}
    elif turn.product is not None:
        node["out"] = str(turn.product)
        if "seed" in _keywords(node):
            node.setdefault("seed", seed)
    return node


def reviewed(call: Call, review: Review) -> None:
    """Adds to the review of a config of `RECIPE` what is wrong with its stages, in every round that differs from the others."""
    stages, rounds = call.arguments.get("stages"), call.arguments.get("rounds")
    if not isinstance(stages, Mapping) or not isinstance(rounds, int):
        return
    if wrong := [*_wrong_stages(stages)]:
        review.errors.extend(wrong)
        return
    run = call.arguments.get("run")
    settings = run.arguments if isinstance(run, Call) else {}
    folder = Path(str(settings.get("folder", "runs"))) / str(settings.get("name", RECIPE))
    lines, external = dict[str, None](), dict[Any, None]()
    for turn in turns(stages, folder, rounds=min(rounds, max(LOOKED_AT, *_lengths(stages), 1))):
        inner = Review(review.trust)
        errors = list[str]()
        node = config_of(turn, errors)
        if not errors:
            planned = plan(node, inner)
            if planned is not None:
                crosschecked(planned, inner)
        lines |= dict.fromkeys(f"stages.{turn.name}.{line}" for line in [*errors, *inner.errors])
        external |= dict.fromkeys(name._replace(key=f"stages.{turn.name}.{name.key}") for name in inner.external)
    review.errors.extend(lines)
    review.external.extend(external)


class _Resolver(NamedTuple):
    """Puts values in the place of references; what a reference leaves out has no key."""

    turn: Turn
    errors: list[str]

    def mapping(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        inside = {key: self.value(value, f"{path}.{key}".lstrip(".")) for key, value in node.items()}
        return {key: value for key, value in inside.items() if value is not _NOTHING}

    def value(self, value: Any, path: str) -> Any:
        if isinstance(value, Mapping) and set(value) == {"by_round"}:
            return self.value(self._by_round(value["by_round"], path), path)
        if isinstance(value, Mapping) and "stage" in value and "use" not in value:
            return self._referred(value, path)
        if isinstance(value, Mapping):
            return self.mapping(value, path)
        if isinstance(value, list):
            inside = [self.value(item, f"{path}[{number}]") for number, item in enumerate(value)]
            return [item for item in inside if item is not _NOTHING]
        return value

    def _by_round(self, values: Any, path: str) -> Any:
        if not isinstance(values, list) or not values:
            self.errors.append(f"{path}.by_round: got {values!r}, takes a list: a value for each round, of which the last one holds on")
            return None
        return values[min(self.turn.round, len(values)) - 1]

    def _referred(self, reference: Mapping[str, Any], path: str) -> Any:
        turn, name, which = self.turn, reference["stage"], reference.get("round", 0)
        if mistake := self._mistake(reference, name, which):
            self.errors.append(f"{path}: {mistake}")
            return None
        if which == "all":
            made = [self._of(name, number) for number in range(1, turn.round + 1) if self._is_made(name, number)]
            return made or self._otherwise(reference, f"{name} of all rounds so far", path)
        number = turn.round + which if which <= 0 else which
        if not self._is_made(name, number):
            return self._otherwise(reference, f"{name} of round {number}", path)
        return self._said(name, number, reference["key"], path) if "key" in reference else self._of(name, number)

    def _mistake(self, reference: Mapping[str, Any], name: Any, which: Any) -> str:
        stages, known = self.turn.stages, ", ".join(self.turn.stages)
        if odd := next((key for key in reference if key not in REFERENCE), None):
            return f"unknown key {odd} beside stage; takes stage, round, otherwise, key"
        if not isinstance(name, str) or name not in stages:
            return f"got the stage {name!r}, takes one of {known}{nearest(str(name), stages)}"
        if "key" in reference and (which == "all" or not isinstance(reference["key"], str)):
            return f"got key {reference['key']!r} of round {which}, takes a word, and one round"
        if which != "all" and (not isinstance(which, int) or isinstance(which, bool)):
            return f"got round {which!r}, takes 0 (this one), -1 (the one before), ..., 1 (the first), ..., or all"
        if named(name, stages[name]) is None:
            return f"{name} makes no file and no run (no out)"
        if which == 0 and [*stages].index(name) >= self.turn.place:
            return f"{name} does not come before {self.turn.name} in a round; takes round: -1, or another order of stages"
        return ""

    def _is_made(self, name: str, number: int) -> bool:
        there = [*self.turn.stages].index(name)
        return number >= 1 and (number, there) < (self.turn.round, self.turn.place)

    def _of(self, name: str, number: int) -> Product:
        product = self.turn._replace(name=name, round=number).product
        return Product(product)

    def _said(self, name: str, number: int, key: Any, path: str) -> Any:
        """What the file of a stage says under a key, null: no such key; the path of the file, where it is not there yet."""
        product = self._of(name, number)
        if not Path(product).is_file():
            return product
        try:
            value = json.loads(Path(product).read_text(encoding="utf-8"))[key]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.errors.append(f"{path}: {product} has nothing under {key!r}; takes a key of its object of JSON")
            return None
        return _NOTHING if value is None else value

    def _otherwise(self, reference: Mapping[str, Any], what: str, path: str) -> Any:
        if "otherwise" not in reference:
            self.errors.append(f"{path}: {what} is not made by round {self.turn.round}; takes otherwise: VALUE (null: no such key)")
            return None
        other = reference["otherwise"]
        return _NOTHING if other is None else self.value(other, path)


_NOTHING = object()


def _keywords(node: Mapping[str, Any]) -> Sequence[str]:
    """Those of a command of mmalign's own."""
    from mmalign.arguments.signatures import parameters
    from mmalign.rooms import find

    return [*parameters(find("mmalign.commands", node["use"]))[0]] if node.get("use") in index("mmalign.commands") else []


def _wrong_stages(stages: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with stages whatever the round."""
    if not stages:
        yield "stages: got none, takes {NAME: {use: a recipe or a command, ...}}, in their order"
    products = dict[str, str]()
    for name, node in stages.items():
        path = f"stages.{name}"
        if not isinstance(node, Mapping) or not isinstance(node.get("use"), str):
            yield f"{path}.use: missing, takes the name of a recipe or a command"
            continue
        if node["use"] == RECIPE:
            yield f"{path}.use: got {RECIPE} inside of {RECIPE}; takes another recipe, or a command"
        run, out = node.get("run"), node.get("out")
        if isinstance(run, Mapping) and "folder" in run:
            yield f"{path}.run.folder: got {run['folder']!r}; takes none, as a stage's run is in the folder of its round"
        if out is not None and (not isinstance(out, str) or Path(out).name != out or out in ("", ".", "..")):
            yield f"{path}.out: got {out!r}, takes the name of a file, which is in the folder of its round"
        product = named(name, node)
        if product is not None and (other := products.setdefault(product, name)) != name:
            yield f"{path}: makes {product}, as {other} does; takes another {'out' if 'out' in node else 'name'}"


def _lengths(value: Any) -> list[int]:
    """How many rounds of their own the values by round in a config have."""
    if isinstance(value, Mapping):
        own = [len(value["by_round"]) for _ in (0,) if isinstance(value.get("by_round"), list)]
        numbers = [value["round"] + 1 for _ in (0,) if isinstance(value.get("round"), int) and "stage" in value]
        back = [1 - value["round"] for _ in (0,) if isinstance(value.get("round"), int) and "stage" in value]
        return [*own, *numbers, *back, *(length for item in value.values() for length in _lengths(item))]
    return [length for item in value for length in _lengths(item)] if isinstance(value, list) else []
