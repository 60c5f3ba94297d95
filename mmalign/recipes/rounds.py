"""Rounds: stages that follow each other, and begin anew with what they made; samples, labels, filters, training, evaluation.

What differs from the papers, and from well-known code:

1. A stage is a recipe or a command as it is by itself, called with a config: there is no other trainer here, and no other sampler.
2. What a stage makes is an ordinary file or the folder of a run, in the folder of its round. The next ones read it from there.
3. The state is one file, which says which stages are done. A stage that was interrupted goes on where it can (a run, from its checkpoint),
   and is done again where it cannot (a command, whose file appears whole or not at all).
4. All randomness of a stage follows from the run's seed, the round, and the place of the stage, so that a resumed run equals one that was
   left alone.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmalign.arguments import calls
from mmalign.arguments.ranges import Count, Seed
from mmalign.arguments.signatures import Record
from mmalign.config import build, check
from mmalign.config.nodes import Product
from mmalign.config.stages import Turn, config_of, turns
from mmalign.distributed.folder import refuse_elsewhere
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import Team, joined
from mmalign.files import gone, plain, write_json, write_text
from mmalign.recipes._run import Run, paged
from mmalign.runs import rounds as folders
from mmalign.runs.rounds import Book, Entry
from mmalign.runs.trained import trained
from mmalign.training.evaluations.summary import read_by_people
from mmalign.types import UserError

ENDED = ("interrupted", "learned nothing", "stopped learning", "not finite")
"""What becomes of a stage's training after which no other stage follows."""


@dataclass(frozen=True)
class RoundsSettings(Record):
    """What a run of rounds is called, where it is kept, and its seed.

    name, folder: it is written to ``folder/name``. seed: from which those of its stages follow, where they do not say one.
    """

    name: str = "rounds"
    folder: str = "runs"
    seed: Seed = 0


def rounds(
    stages: dict[str, dict[str, Any]],
    *,
    rounds: Count,
    run: RoundsSettings = RoundsSettings(),
    resume: bool = False,
) -> Run:
    """Goes through stages again and again, each with what those before it made; returns the finished run.

    Args:
        stages: name -> the config of a recipe or a command, in their order: ``{use: make_pairs, policy: ..., out: pairs.jsonl}``,
            ``{use: offline, ...}``. In place of any value may stand ``{stage: NAME}``, what that stage made in this round (the path of its
            file, or of its run); ``{stage: NAME, round: -1, otherwise: VALUE}``, in the round before, and what stands there where there is
            none (``null``: no such key); with ``round: 1`` in the first one, with ``round: all`` a list of all so far; and
            ``{by_round: [16, 24, 32]}``, a value for each round, of which the last one holds on.
        rounds: how many. A run that is resumed may have more.
        run: what it is called, where it is kept, and its seed.
        resume: go on behind what is done, and inside of the stage that was interrupted. Stages may say other things than before (a line
            says so): what is done stays.

    Each stage is checked as a config by itself before the first one begins. What they make is in ``folder/name/round_001``, ...:
    ``out`` names a file there, a run has the name of its stage, and ``<stage>.yaml`` is the config that the stage was. A step of the log
    and of the report is a round: evaluated numbers by their names, what was counted and trained as ``<stage>/<name>``.

    A command of another package is called by the main process alone; those of mmalign's, and recipes, by all of them.

    Errors: UserError before anything begins for mistakes in any stage, and a run that is there already; and by round and stage for what
    one of them refuses. Ctrl-C saves what the stage can save, and the run goes on from there.
    """
    team, config = joined(), calls.described()
    if lines := check({"use": "rounds", "stages": stages, "rounds": rounds, "run": vars(run)}, trust=True):
        raise UserError("\n".join(lines))
    last: Run | None = None
    with stopping_together(team), _opened(team, run, config, resume) as book:
        status = ""
        for turn in turns(stages, book.path, rounds=rounds, seed=run.seed):
            if status or book.done(turn.round, turn.name):
                continue
            made, entry = _carried_out(turn, team, rounds)
            last = made if isinstance(made, Run) else last
            status = str(made.summary["status"]) if isinstance(made, Run) and made.summary["status"] in ENDED else ""
            if not status:
                _said(book, team, entry)
        summary = _summary(book.entries, status=status or "finished", seed=run.seed)
        if last is not None and status == "interrupted":
            summary["interrupted_by"] = last.summary["interrupted_by"]
        if team.main:
            write_json(book.path / "summary.json", summary)
    if last is None and folders.last_run(book.path) is not None:  # all of it was done
        return paged(Run(book.path, summary, trained(book.path, trust=True).policy()), team)
    return paged(Run(book.path, summary, None if last is None else last.policy), team)


@contextmanager
def _opened(team: Team, run: RoundsSettings, config: Mapping[str, Any], resume: bool) -> Iterator[Book]:
    """The run's folder, which the main process holds; the others read what is done there."""
    team.agree("config", plain(config))
    if not team.main:
        path = Path(team.tell(None)[0])
        refuse_elsewhere(team, path, "run.folder")
        yield Book(path, folders.read_entries(path))
        return
    with folders.opened(run.folder, run.name, config=config, resume=resume) as book:
        team.tell(str(book.path))
        refuse_elsewhere(team, book.path, "run.folder")
        for note in book.notes:
            print(note, flush=True)
        yield book


def _carried_out(turn: Turn, team: Team, rounds: int) -> tuple[Any, Entry]:
    """What a stage gave, and what is said of it when it is done. Errors: UserError that begins with round and stage."""
    where, errors = f"round {turn.round}, {turn.name}", list[str]()
    node = config_of(turn, errors)
    errors += [f"{path} is gone" for path in _missing(node)]
    if errors:
        raise UserError(f"{where}: {'; '.join(errors)}")
    node = _settled(node)
    if team.main:
        print(f"round {turn.round} of {rounds}  {turn.name} ({node['use']})", flush=True)
    began, product, run = time.monotonic(), turn.product, isinstance(node.get("run"), Mapping)
    begun = bool(team.tell(run and product is not None and product.exists())[0])
    if team.main:
        _make_room(turn, node, run)
    team.tell("room")
    try:
        made = _built(node, team, **({"resume": True} if begun else {}))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    entry = Entry(
        turn.round, turn.name, node["use"], round(time.monotonic() - began, 3),
        None if product is None else str(product.relative_to(turn.folder)),
        **(folders.numbers_of(made.path, made.summary) if isinstance(made, Run) else {"counts": _counts(made)}),
    )  # fmt: skip
    return made, entry


def _built(node: Mapping[str, Any], team: Team, **extra: Any) -> Any:
    """What a stage's config gives. A function of somebody else's is called by the main process alone, as it may know of no others."""
    if "." not in node["use"] or team.alone:
        return build(node, **extra)
    return team.tell(plain(build(node, **extra)) if team.main else None)[0]


def _make_room(turn: Turn, node: Mapping[str, Any], run: bool) -> None:
    """The folder of a round, with the config of the stage; what a command made before a kill is made again.

    Commands of mmalign's make files and folders that appear whole or not at all. The folder of another package's may be one that goes on.
    """
    import yaml

    turn.home.mkdir(parents=True, exist_ok=True)
    if not run:
        write_text(turn.home / f"{turn.name}.yaml", yaml.safe_dump(plain(node), sort_keys=False, allow_unicode=True))
    if not run and turn.product is not None and ("." not in node["use"] or turn.product.is_file()):
        gone(turn.product)


def _said(book: Book, team: Team, entry: Entry) -> None:
    """A stage is done: the main process says so in the state."""
    if team.main:
        book.add(entry)
        print("  ".join(["        ", *(f"{name} {value:g}" for name, value in entry.counts.items())]).rstrip(), flush=True)
    else:
        book.entries.append(entry)
    team.tell("said")  # nobody begins what follows before it is


def _summary(entries: Sequence[Entry], *, status: str, seed: int) -> dict[str, Any]:
    """The run in a few numbers: what was evaluated before the first round and after the last one, and what it cost; NaN is missing."""
    first, after = folders.before(entries), {name: value for entry in entries for name, value in entry.after.items()}
    names = read_by_people({**first, **after})
    numbers = {f"{name}_{when}": row.get(name, math.nan) for name in names for when, row in (("before", first), ("after", after))}
    done = sum(entry.stage == entries[-1].stage for entry in entries) if entries else 0
    return {
        "seed": seed, "status": status, "steps": done, "rewards": list(dict.fromkeys(name for entry in entries for name in entry.rewards)),
        "judges": list(dict.fromkeys(name for entry in entries for name in entry.judges)), **numbers, "kl": after.get("kl", math.nan),
        "train_seconds": round(sum(entry.seconds for entry in entries), 2),
    }  # fmt: skip


def _counts(made: Any) -> dict[str, float]:
    """The numbers among what a command returned."""
    items = made.items() if isinstance(made, Mapping) else ()
    return {str(key): value for key, value in items if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _missing(node: Any) -> Iterator[str]:
    """Products that a config names and that are not there."""
    yield from (value for value in _leaves(node) if isinstance(value, Product) and not Path(value).exists())


def _leaves(value: Any) -> Iterator[Any]:
    if not isinstance(value, (Mapping, list)):
        yield value
        return
    for item in value.values() if isinstance(value, Mapping) else value:
        yield from _leaves(item)


def _settled(value: Any) -> Any:
    """A config whose products are there, by their paths as any other config has them."""
    if isinstance(value, Mapping):
        return {key: _settled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_settled(item) for item in value]
    return str(value) if isinstance(value, Product) else value
