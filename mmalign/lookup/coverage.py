"""What of the field is here: a row for each published system, and the methods by what they learn from.

``coverage.csv`` has the systems (id, title, modality), the names that each goes by here, a test of it, and what it lacks. Names are looked
up, configs and tests are looked for, so that the table cannot speak of what is gone.
"""

from __future__ import annotations

import csv
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmalign.lookup.catalogue import KINDS, configs, everything
from mmalign.rooms import find, index

if TYPE_CHECKING:
    from mmalign.types import Method

TABLE = Path(__file__).with_name("coverage.csv")
PACKAGE = Path(__file__).parents[1]
OUT = "out of the field"
SIGNALS = {  # family of methods -> what it learns from
    "pairs": "pairs", "denoising_preference": "pairs", "reward_models": "pairs and ratings", "unpaired": "thumbs and demonstrations",
    "lists": "rankings", "games": "win rates and pairs of its own", "policy_gradient": "rewards", "denoising": "rewards",
    "forward_process": "rewards", "reward_gradient": "gradients of rewards", "distillation": "a teacher, and rewards",
}  # fmt: skip
SEGMENTS = {"changed", "phrase", "segment"}
STEPS = {"entropy", "kls", "reverse_kls", "value", "reward_mask", "kl_mask", "activation", "collision", "std", "slope", "noise", "drift"}


class System(NamedTuple):
    """A published system. here: names (``methods.dpo``), configs (``configs/text/dpo``) and places in the package. test: a file of tests,
    or a folder. lacks: what is not here; "" for nothing, and ``out of the field: ...`` for what there is nothing to be here of."""

    id: str
    title: str
    modality: str
    here: tuple[str, ...]
    test: str
    lacks: str

    @property
    def status(self) -> str:
        """``complete``, ``partial``, ``missing`` or ``out``."""
        if self.lacks.startswith(OUT):
            return "out"
        if not self.lacks:
            return "complete"
        return "partial" if self.here else "missing"


def systems() -> list[System]:
    """All of them, in the order of the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [
            System(row["id"], row["title"], row["modality"], tuple(row["here"].split()), row["test"], row["lacks"])
            for row in csv.DictReader(file)
        ]


def mistakes(rows: Sequence[System], *, tests: Path | None = None) -> Iterator[str]:
    """A line for each name and config that is not here, for what is called complete without name or test, and for names of two rows.

    tests: the folder of the tests, where there is a checkout: then a line for each that is not there.
    """
    for system, count in Counter(row.id for row in rows).items():
        if count > 1:
            yield f"{system}: {count} rows"
    for row in rows:
        yield from (f"{row.id}: {word} is not here" for word in row.here if not is_here(word))
        if row.status == "complete" and not (row.here and row.test):
            yield f"{row.id}: called complete without a name or a test"
        if row.test and tests is not None and not (tests.parent / row.test).exists():
            yield f"{row.id}: {row.test} is not there"


def is_here(word: str) -> bool:
    """Whether a name of the table stands for something."""
    if word.startswith("configs/"):
        return word.removeprefix("configs/") in configs()
    if "/" in word:
        return any((PACKAGE / f"{word}{ending}").exists() for ending in ("", ".py"))
    kind, _, name = word.partition(".")
    if kind in KINDS and any(listing.name == name for listing in everything(kind)):
        return True
    return (PACKAGE / kind).is_dir() and (name in index(f"mmalign.{kind}") or (PACKAGE / kind / f"{name}.py").is_file())


def counts(rows: Sequence[System]) -> dict[str, int]:
    """How many systems have each status."""
    counted = Counter(row.status for row in rows)
    return {status: counted.get(status, 0) for status in ("complete", "partial", "missing", "out")}


class View(NamedTuple):
    """A method by what it learns from. granularity: what one number of its says something of. modalities: of the policies that it takes."""

    method: str
    signal: str
    reference: str
    granularity: str
    modalities: str


def views() -> list[View]:
    """Every method that is built without arguments of its own, by signal, reference, granularity and modality.

    All but the signal, which is the method's family, is read off the method itself: the references it asks for, its unit and needs, and
    the kinds of steps that it accepts. This is the division of surveys of preference optimisation (e.g. https://arxiv.org/abs/2410.15595:
    data, reward, reference, loss), as far as the product can tell it.
    """
    shown = []
    for listing in everything("methods"):
        build = find("mmalign.methods", listing.name)
        if any(one.default is one.empty for one in inspect.signature(build).parameters.values()):
            continue
        method, family = build(), Path(listing.place).parent.name
        needs = method.needs | method.survey_needs | method.reads
        references = sorted({need.name for need in needs if need.kind in ("refs", "kls", "reverse_kls", "absolute", "score") and need.name})
        kinds = {need.kind for need in needs}
        shown.append(View(listing.name, SIGNALS[family], ", ".join(references) or "none", _grain(method, kinds), _modalities(method.kinds)))
    return shown


def _grain(method: Method, kinds: set[str]) -> str:
    """What one number of a method's says something of. kinds: of the tables that it asks for."""
    if kinds & SEGMENTS:
        return "segments"
    return "steps" if kinds & STEPS or method.unit == "cell" else "outputs"


def _modalities(kinds: frozenset[str]) -> str:
    words = {
        "token": "text, vision-language, images as tokens",
        "transition": "diffusion and flow",
        "bound": "diffusion and flow, by errors",
    }
    return "; ".join(words[kind] for kind in words if kind in kinds) or "reward models"


def page(rows: Sequence[System]) -> str:
    """The page, in Markdown: how many there are of each status, a row for each system, the methods by what they learn from."""
    counted = counts(rows)
    of_field = sum(counted.values()) - counted["out"]
    lines = [
        "# What of the field is here",
        "",
        "Made by `mmalign coverage --page FILE` from `coverage.csv`; a test holds that every name, config and test in it is there.",
        "",
        f"Of {of_field} published systems of the field {counted['complete']} are complete, {counted['partial']} are here in part, and "
        f"{counted['missing']} are not; {counted['out']} more of the list are out of the field.",
        "",
        "| system | modality | here | test | what lacks |",
        "|---|---|---|---|---|",
        *(_row(row) for row in rows),
        "",
        "## Methods by what they learn from",
        "",
        "| method | signal | reference | granularity | policies |",
        "|---|---|---|---|---|",
        *(f"| `{view.method}` | {' | '.join(view[1:])} |" for view in views()),
        "",
    ]
    return "\n".join(lines)


def _row(row: System) -> str:
    names = " ".join(f"`{word}`" for word in row.here)
    return f"| {row.title} ({row.id}) | {row.modality} | {names} | {f'`{row.test}`' if row.test else ''} | {row.lacks} |"
