"""Preferences of people: what is judged is drawn or read, and shown on a page that this machine serves (``mmalign label``)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice, permutations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from tqdm import tqdm

from mmalign.arguments.ranges import Count, Seed, within
from mmalign.config import build_part, load
from mmalign.data._reading.tables import blocks, in_order
from mmalign.data._schemas.outputs import loader
from mmalign.evaluation.preference import win_rate
from mmalign.evaluation.strengths import zermelo
from mmalign.labelling.agreement import agreement
from mmalign.labelling.app import Desk, application
from mmalign.labelling.items import ITEMS, Items, of_records, origin_of_file
from mmalign.labelling.judgements import Judgement, Judgements
from mmalign.media import Broken
from mmalign.records import Pair, Ranking, Thumb, once
from mmalign.runs import checkpoint
from mmalign.runs.folder import found, held
from mmalign.runs.trained import refuse_external_code, trained
from mmalign.serving.asking import LOOPBACK
from mmalign.serving.listening import answer, bound
from mmalign.training.journal import hashed
from mmalign.types import Policy, UserError, contents

PACKAGES = ("fastapi", "uvicorn", "krippendorff")
MOST = 10_000  # records that are looked through for prompts
STOP = 5.0  # seconds that a judgement on its way has


class Author(NamedTuple):
    """What makes outputs that are judged. name: as it was given. call: of its evaluations. prompts: its own, of ``(held_out, limit)``.
    facts: what tells it from others."""

    name: str
    policy: Callable[[], Policy]
    parameters: str
    call: Mapping[str, Any]
    prompts: Callable[[bool, int | None], list[Any]]
    facts: dict[str, Any]


def label(  # what a command may be told
    out: str, *, models: Sequence[str] = (), pairs: str | Mapping[str, Any] | None = None, prompts: Sequence[Any] | None = None,
    outputs: Count = 2, limit: Count | None = 64, each: Count | None = None, seed: Seed = 0, host: str = "127.0.0.1",
    port: Annotated[int, within(0, 65535)] = 8200, trust: bool = False, ready: Callable[[str], None] = lambda address: None,
    say: Callable[[str], None] = print,
) -> dict[str, int]:  # fmt: skip
    """Serves a page where people judge outputs of models blind, until it is told to stop (SIGTERM, Ctrl-C); returns counts.

    Args:
        out: the file of pairs, ``labels.jsonl``, which the loaders of ``mm.data`` read: it is whole after each judgement. What is judged,
            and all that was said, is in a folder of that name without the ending, from where a later start goes on.
        models: runs, or configs for what they start from. Of one its ``outputs`` differ by seed; several are set against each other.
        pairs: instead of models, what is there already: a file, or a node of ``records`` for one that has to be described.
        prompts: what models are asked. By default those that the first one is trained on, of its records where it has no others, so that
            pairs for training hold nothing of its evaluations; of several models, who are compared, those of its evaluations.
        outputs: of each prompt, where there is one model. limit: items at most; None for all. seed: of the first output, and of the orders.
        each: how many annotators judge an item; None: all of them do.
        host, port: where it listens; others than this machine's own people need the key in the address that is printed. 0: a free port.
        trust: the config of a model may name code outside of mmalign, which is then imported and run.
        ready: hears the address once it can be opened. say: hears lines.

    Counts: ``items, judgements, annotators, pairs``. Errors: UserError for a model or a file that cannot be used, labels of another model
    or file, a page that is served already for this file, a port in use, and packages that are missing (the extra ``label``).
    """
    if absent := [package for package in PACKAGES if find_spec(package) is None]:
        raise UserError(f"label: needs the package {absent[0]}, which is not installed: pip install 'mmalign[label]'")
    path = Path(out)
    folder = path.with_suffix("")
    if path.suffix != ".jsonl":
        raise UserError(f"out: got {out}, takes a file that ends in .jsonl")
    if path.exists() and not (folder / ITEMS).is_file():
        raise UserError(f"out: {out} is there already and is of no mmalign label; takes a new file")
    if models and pairs is not None:
        raise UserError("pairs: got models too, takes one of both")
    with contextlib.closing(bound(host, port, "port")) as socket, held(folder, "shows a page for this file", takes="take another file"):
        items = _items(folder, models, pairs, prompts, outputs=outputs, limit=limit, seed=seed, trust=trust, say=say)
        judgements = Judgements(items, path)
        if judgements.torn:
            say(f"{folder}: a judgement that was cut off while it was written, and was never answered for, is gone")
        local = host in LOOPBACK
        token = None if local else secrets.token_urlsafe(12)
        app = application(Desk(items, judgements, each=each, seed=seed), token=token, **({} if local else {"hosts": ["*"]}))
        address = f"http://{host}:{socket.getsockname()[1]}/{f'?key={token}' if token else ''}"
        say(f"judge at {address} ({len(items.all)} items, {len(judgements.standing())} judgements so far; Ctrl-C ends it)")
        ready(address)
        answer(app, socket, stop=STOP)
        return _counts(items, judgements, say)


def _counts(items: Items, judgements: Judgements, say: Callable[[str], None]) -> dict[str, int]:
    standing = judgements.standing()
    rows = sum(1 for line in judgements.out.read_text(encoding="utf-8").split("\n") if line)
    annotators = len({who for _, who in standing})
    agreed = agreement(standing)
    if agreed.compared:
        say(f"agreement: the same word in {agreed.same:.0%} of {agreed.compared} shared comparisons, alpha {agreed.alpha:.2f}")
    for line in _preferred(items, list(standing.values())):
        say(line)
    return {"items": len(items.all), "judgements": len(standing), "annotators": annotators, "pairs": rows}


def _preferred(items: Items, judgements: Sequence[Judgement]) -> Iterator[str]:
    """How often each of several models was preferred to the others, where several were judged; intervals are over prompts."""
    compared: dict[str, list[tuple[str, float]]] = {}
    met = dict[tuple[str, str], float]()
    for one in judgements:
        makers = items.by_id[one.item].made_by
        tier_of = {output: tier for tier, outputs in enumerate(one.ranking) for output in outputs}
        for first, second in permutations(tier_of, 2):
            outcome = 0.5 if tier_of[first] == tier_of[second] else float(tier_of[first] < tier_of[second])
            compared.setdefault(makers[first], []).append((one.item, outcome))
            met[makers[first], makers[second]] = met.get((makers[first], makers[second]), 0.0) + outcome
    models = {author.get("run", author.get("config")) for author in items.origin.get("model", [])}
    for name, outcomes in compared.items() if len(models) > 1 else ():
        rate = win_rate([outcome for _, outcome in outcomes], [item for item, _ in outcomes]).values["win_rate"]
        yield f"{name}: preferred in {rate.value:.0%} of {len(outcomes)} comparisons (95 %: {rate.low:.0%} to {rate.high:.0%})"
    yield from _strengths(list(compared), met) if len(models) > 2 else ()


def _strengths(names: Sequence[str], met: Mapping[tuple[str, str], float]) -> Iterator[str]:
    """How strong each of three or more models is, whomever it met: Bradley and Terry's fit, in logits. Ties count one half."""
    try:
        fit = zermelo([[met.get((one, other), 0.0) for other in names] for one in names])
    except UserError:
        yield "strengths: not known yet, since some have won or lost every comparison"
        return
    for name, value, error in zip(names, fit.values, fit.errors, strict=True):
        yield f"{name}: strength {round(value, 2) + 0.0:+.2f} +- {error:.2f} (logits, their mean is 0)"


def _items(  # what is judged may be told in several ways
    folder: Path, models: Sequence[str], pairs: str | Mapping[str, Any] | None, prompts: Sequence[Any] | None, *, outputs: int,
    limit: int | None, seed: int, trust: bool, say: Callable[[str], None],
) -> Items:  # fmt: skip
    """What is judged: as it lies in the folder, or made now."""
    if pairs is not None:
        node = {"use": loader_of(pairs), "path": pairs} if isinstance(pairs, str) else dict(pairs)
        origin = {"records": hashed([node]), **(origin_of_file(str(node["path"])) if Path(str(node.get("path"))).is_file() else {})}
        items = Items(folder, {**origin, "limit": limit})
        if not items.all:
            say(f"pairs: read by {node['use']}")
            of_records(items, build_part({"records": node}, "records").stream(seed=seed), limit)
        return items
    if not models:
        return Items(folder)
    authors = [_author(name, trust) for name in models]
    wanted = list(prompts or authors[0].prompts(len(authors) > 1, limit))
    if not wanted:
        raise UserError(f"prompts: {models[0]} names none; takes --prompts or --prompt")
    if limit is not None and len(wanted) > limit:
        say(f"prompts: the first {limit} of {len(wanted)} (--limit)")
    wanted = contents(wanted[:limit])
    count = outputs if len(authors) == 1 else 1
    if len(authors) == 1 and outputs < 2:
        raise UserError(f"outputs: got {outputs}, takes 2 or more of one model")
    origin = {"model": [author.facts for author in authors], "prompts": hashed(wanted), "outputs": count, "seed": seed}
    items = Items(folder, origin)
    if not items.all:
        _draw(items, authors, wanted, count, seed, say)
    return items


def loader_of(path: str) -> str:
    """Which loader of ``mm.data`` reads a file, by its first whole row. Errors: UserError for a file without one."""
    if not Path(path).exists():
        raise UserError(f"pairs: {path} is not there; takes a file of pairs")
    row = next((row for _, _, row in in_order(blocks(path), seed=None) if not isinstance(row, Broken)), None)
    if row is None:
        raise UserError(f"pairs: {path} holds no row that can be read")
    return loader(row)


def _author(name: str, trust: bool) -> Author:
    """Errors: UserError for what is neither a run nor a config with a policy."""
    folder = found(name)
    if folder is not None:
        run = trained(folder, trust=trust)
        config, policy, parameters = run.config, run.policy, "current" if run.best == "trained" else run.best
        facts = {"run": folder.name, "weights": checkpoint.identity(run.checkpoint), "set": run.best}
    else:
        config = load(name, [])
        refuse_external_code(config, name, trust)
        if "policy" not in config:
            raise UserError(f"model: {name} has no policy; takes a run, or the config of one")
        policy, parameters = lambda: build_part(config, "policy"), "current"
        facts = {"config": name, "policy": hashed(config["policy"])}
    evaluation = config.get("evaluation") or {}
    call = evaluation.get("call") or {}
    return Author(name, policy, parameters, call, partial(_own_prompts, config), facts)


def _own_prompts(config: Mapping[str, Any], held_out: bool, limit: int | None) -> list[Any]:
    """What the model of a config is asked: where it is evaluated, or where it is trained, as far as there is any of it."""
    evaluated, asked = (partial(build_part, part, "prompts") for part in (config.get("evaluation") or {}, config))
    given = partial(_prompts_of_records, config, limit)
    order = (evaluated, asked, given) if held_out else (asked, given, evaluated)
    return next((list(some) for read in order if (some := read())), [])


def _prompts_of_records(config: Mapping[str, Any], limit: int | None) -> list[Any]:
    """The prompts of the records that a config trains on, each once, in the order of a run of seed 0; none of records that have none."""
    if not config.get("records"):
        return []
    seen: dict[str, Any] = {}
    for record in islice(once(build_part(config, "records").stream(seed=0)), MOST):
        if limit is not None and len(seen) >= limit:
            break
        if isinstance(record, (Pair, Ranking, Thumb)):
            seen.setdefault(hashed([record.prompt]), record.prompt)
    return list(seen.values())


def _draw(items: Items, authors: Sequence[Author], prompts: Sequence[Any], count: int, seed: int, say: Callable[[str], None]) -> None:
    """Outputs of every author to every prompt, one model at a time; a prompt whose outputs are all the same words is left out."""
    stored: list[list[tuple[Any, str]]] = [[] for _ in prompts]
    made_by = [author.name if count == 1 else f"{author.name} seed {seed + place}" for author in authors for place in range(count)]
    with tqdm(total=len(prompts) * len(made_by), desc="drawing", unit="output") as bar:
        for number, author in enumerate(authors):
            for row, place, output in _outputs(author, prompts, count, seed):
                stored[row].append(items.store(f"{row:05d}-{number * count + place}", output))
                bar.update()
    for row, (prompt, some) in enumerate(zip(prompts, stored, strict=True)):
        if some[0][0] != "text" or len({words for _, words in some}) > 1:
            items.add(prompt, some, made_by, id=str(row))
    if not items.all:
        raise UserError(
            f"model: {authors[0].name} gives the same answer each time, and nothing can be compared; takes a temperature above 0"
        )
    if len(items.all) < len(prompts):
        say(f"{len(prompts) - len(items.all)} prompts are left out: all answers to them are the same")
    items.save()


@torch.no_grad()
def _outputs(author: Author, prompts: Sequence[Any], count: int, seed: int, at_once: int = 8) -> Iterator[tuple[int, int, Any]]:
    """(number of the prompt, number of the output, output), in their order."""
    policy = author.policy()
    rows = [(row, place) for row in range(len(prompts)) for place in range(count)]
    with policy.using(author.parameters):
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            drawn = policy.generate([prompts[row] for row, _ in some], [seed + place for _, place in some], **author.call)
            yield from ((row, place, output) for (row, place), output in zip(some, drawn, strict=True))
