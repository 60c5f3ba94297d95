"""Shows that several processes take the steps of one: every method, in every recipe, on 2 and 4 gloo processes of this machine's CPU.

python -m scripts.processes                                     # all of it: an hour and more on two cores
python -m scripts.processes --only images --processes 4         # one kind, on four
python -m scripts.processes --only offline/tokens --methods dpo kto --ways cut --models lora --keep runs/processes

A kind is a recipe with a small model of random weights: a language model, a denoiser of images, steps of a closed form, a reward model, and
the rounds of configs/selftest. Each method that learns from such steps (games and gradients of rewards among them) trains the same model in
one process and in several, which hold all of it (``whole``, data parallel) or its shards (``cut``, FSDP2), all its parameters (``full``) or
adapters (``lora``). Then every number of every line of their logs, and every tensor of their last checkpoints, row by row, is compared:
trained ones, references, moments of the optimiser. ``share`` is the part of the tolerance that the farthest of them takes:

- float64: 1e-10 of a number, or 1e-12; where a part of the model is in float32 (adapters, heads): 1e-6, or 1.2e-7
- denoisers and reward models, in float32 throughout: 3e-4, or 3e-5; rounds: 1e-4, or 1e-5, after six steps

as tests/distributed/test_every_method.py and test_denoisers.py derive them. A method that this kind of model or record cannot train counts
as refused, which all processes have to be with the same words. Exit code: 0 where all are alike, 1 where one differs, 2 for a mistake in
the call.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch._dynamo  # these three here, so that no forked process has to import them again
import torch.distributed.fsdp
import torch.distributed.tensor

import mmalign as mm
from mmalign.config import build, load
from mmalign.distributed.forked import fork, wait, words
from mmalign.policies.settings import Lora
from mmalign.records import Pair, Ranking, Thumb
from mmalign.samplers import kernels
from mmalign.training.evaluations.evaluation import Results
from mmalign.training.settings import Devices
from mmalign.types import UserError
from mmalign.worlds.digits.base import untrained
from tests.distributed import test_every_method as closed
from tests.distributed.test_denoisers import CLOSE as OF_IMAGES
from tests.distributed.test_denoisers import bright, shaken
from tests.distributed.test_every_method import (
    CLOSE,
    CLOSE_IN_FLOAT32,
    METHODS,
    ORACLES,
    heads_of,
    method_of,
    shares,
    shares_of_logs,
    varied,
)
from tests.distributed.test_shards import of_words
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

OF_ROUNDS = {"rtol": 1e-4, "atol": 1e-5}
SHOWN = 4  # lines on what is wrong with a method
TIMEOUT = 600.0  # seconds that processes wait for each other
ASKED = ["abc", "why", "one two", "x yz"]
SAID = [("the answer", "a nswer"), ("no", "yes it is"), ("three", "two"), ("or so", "maybe not")]
RECORDS: dict[str, list[Any]] = {
    "pairs": [Pair(ASKED[n], *SAID[n], scores=(0.9 - n / 5, -0.3 + n / 3), annotator="ab"[n % 2]) for n in range(4)],
    "thumbs": [Thumb(ASKED[n], SAID[n][n % 2], label=float(n % 2)) for n in range(4)],
    "rankings": [Ranking(ASKED[n], (*SAID[n], "well"), scores=(0.7, 0.2 + n / 9, -0.4)) for n in range(4)],
}
DIGITS = ["a 3", "a 5", "a 7", "a 9"]


def settings(folder: Path, eps: float, prompts: Sequence[str], **more: Any) -> dict[str, Any]:
    """Of a run of two steps. eps: of AdamW, which makes no more of rounding than that."""
    return {
        "steps": 2, "optimizer": mm.adamw(rate=1e-3, eps=eps, ema=0.9), "evaluation": {"every": 9, "samples": 1, "prompts": prompts},
        "run": {"folder": str(folder), "name": "run", "trackers": (), "checkpoint_every": 9}, **more,
    }  # fmt: skip


def adapters(model: str, **more: Any) -> dict[str, Any]:
    return {"lora": Lora(rank=2, **more)} if model == "lora" else {}


def first_that_fits(trials: Iterator[Callable[[], Any]]) -> None:
    """The first run of several that is not refused. Errors: UserError, the first one's, where all are."""
    refused: UserError | None = None
    for trial in trials:
        try:
            trial()
            return
        except UserError as error:
            refused = refused or error
    if refused is not None:
        raise refused


# ---- kinds


def online_tokens(name: str, folder: Path, model: str, devices: Devices) -> None:
    method = method_of(name)
    policy = of_words(method, **adapters(model, targets="all-linear"))
    batch = mm.Batch(prompts=4, group=4, resample=1, micro_rows=6)
    mm.online(policy, ASKED, {"own": varied}, method, batch=batch, devices=devices, **settings(folder, 1e-4, ASKED))


def offline_tokens(name: str, folder: Path, model: str, devices: Devices) -> None:
    def trial(records: list[Any]) -> None:
        method = method_of(name)
        policy = of_words(method, **adapters(model, targets="all-linear"))
        mm.offline(policy, records, method, batch=mm.RecordBatch(records=4), devices=devices, **settings(folder, 1e-4, ASKED))

    first_that_fits(partial(trial, records) for records in RECORDS.values())


def online_paths(name: str, folder: Path, model: str, devices: Devices) -> None:
    reward = {"linear": closed.QuadraticReward(torch.tensor([1.0, -0.5], dtype=torch.float64))}
    batch = mm.Batch(prompts=4, group=4, updates=2, resample=1)
    prompts = list("abcd")
    mm.online(closed.of_paths(), prompts, reward, method_of(name), batch=batch, devices=devices, **settings(folder, 1e-4, prompts))


def of_images(name: str, model: str) -> Any:
    """Of bounds for a method that learns from these."""
    given: dict[str, Any] = {"schedule": {"steps": 3}, **adapters(model)}
    if "bound" not in method_of(name).kinds:
        given["schedule"]["kernel"] = kernels.flow_sde(noise_level=2**0.5)
    policy = mm.policies.diffusers(shaken(untrained()), device="cpu", **given)
    return mm.policies.forward(policy) if "bound" in method_of(name).kinds else policy


def online_images(name: str, folder: Path, model: str, devices: Devices) -> None:
    rewards = {"bright": bright, "dark": lambda outputs, prompts: -bright(outputs, prompts) / 2}
    batch = mm.Batch(prompts=4, group=4, micro_rows=4)
    mm.online(of_images(name, model), DIGITS, rewards, method_of(name), batch=batch, devices=devices, **settings(folder, 1e-3, DIGITS))


def offline_images(name: str, folder: Path, model: str, devices: Devices) -> None:
    made = torch.rand(4, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pairs = [Pair(prompt, made[n, 0], made[n, 1], scores=(0.9 - n / 5, n / 3), id=prompt) for n, prompt in enumerate(DIGITS)]
    thumbs = [Thumb(prompt, made[n, 0], label=float(n % 2), id=prompt) for n, prompt in enumerate(DIGITS)]

    def trial(records: list[Any]) -> None:
        batch = mm.RecordBatch(records=4, micro_rows=4)
        mm.offline(of_images(name, model), records, method_of(name), batch=batch, devices=devices, **settings(folder, 1e-3, DIGITS))

    first_that_fits(partial(trial, records) for records in (pairs, thumbs))


def offline_scores(name: str, folder: Path, model: str, devices: Devices) -> None:
    def trial(records: list[Any], more: dict[str, Any]) -> None:
        reader = transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=24, **adapters(model))
        policy = mm.policies.scorer(reader, **more)
        given = settings(folder, 1e-3, ASKED)
        given["evaluation"] = {"every": 9, "records": [record._replace(prompt=f"{record.prompt}?") for record in records]}
        mm.offline(policy, records, method_of(name), batch=mm.RecordBatch(records=4, micro_rows=4), devices=devices, **given)

    heads: Any = mm.heads
    latent = {"head": heads.latent_user(annotators=["a", "b"]), "scores": ["score", "kl", "load_a", "load_b"]}
    settings_of: list[dict[str, Any]] = [{}, {"scores": ["score", "spread"]}, {"scores": ["a", "b"]}, latent]
    first_that_fits(partial(trial, records, more) for records in RECORDS.values() for more in settings_of)


def rounds(name: str, folder: Path, model: str, devices: Devices) -> None:
    """A round of four processes takes four prompts and records."""
    counts = ["stages.sample.prompts.count=8", "stages.train.batch.records=4", "stages.train.evaluation.prompts.count=4"]
    place = [f"stages.train.devices.place={devices.place}"]
    build(load("selftest/rounds", [f"run.folder={json.dumps(str(folder))}", *counts, *place]))


@dataclass(frozen=True)
class Kind:
    """A recipe with a small model. train: a run of a method, in ``folder/run``. names: of the methods. models, ways: that it has."""

    train: Callable[[str, Path, str, Devices], None]
    names: list[str]
    close: dict[str, float]
    models: tuple[str, ...] = ("full", "lora")
    ways: tuple[str, ...] = ("whole", "cut")

    def tolerance(self, name: str, model: str) -> dict[str, float]:
        in_float32 = self.close == CLOSE and (model == "lora" or heads_of(method_of(name)))
        return CLOSE_IN_FLOAT32 if in_float32 else self.close


def of_kinds(*kinds: str) -> list[str]:
    return [name for name in ORACLES if name in METHODS and method_of(name).kinds & set(kinds)]


KINDS = {
    "online/tokens": Kind(online_tokens, of_kinds("token"), CLOSE),
    "offline/tokens": Kind(offline_tokens, of_kinds("token"), CLOSE),
    "online/paths": Kind(online_paths, of_kinds("transition"), CLOSE, models=("full",), ways=("whole",)),  # no layers
    "online/images": Kind(online_images, of_kinds("transition", "bound"), OF_IMAGES),
    "offline/images": Kind(offline_images, of_kinds("bound"), OF_IMAGES),
    "offline/scores": Kind(offline_scores, of_kinds("score"), OF_IMAGES),
    "rounds": Kind(rounds, ["selftest/rounds"], OF_ROUNDS, models=("full",)),
}
WITHOUT: dict[str, Callable[..., Any]] = {
    "mmalign.recipes._run.build": lambda path: path,  # the page says nothing that the log does not
    "mmalign.training.journal.Journal.once": lambda *given: None,  # tests/distributed/test_runs.py has preflights and evaluations
    "mmalign.training.journal.evaluate": lambda *given, **more: Results({}, None),
}
WAYS = {"whole": Devices(), "cut": Devices(place="fsdp2")}


# ---- running


class Trained(NamedTuple):
    """Where the runs of some methods of a kind are: each in ``folder/METHOD``, with the words that refused it beside it, if some did."""

    kind: str
    model: str
    way: str
    processes: int

    def folder(self, root: Path) -> Path:
        return root / self.kind.replace("/", "_") / f"{self.model}_{self.way}_{self.processes}"


def train(trained: Trained, names: Sequence[str], root: Path) -> dict[str, str]:
    """Trains what is not there yet, in forked processes. What is wrong of methods whose processes died is returned."""
    folder, kind, died = trained.folder(root), KINDS[trained.kind], dict[str, str]()
    ended = lambda name: (folder / f"{name}.ended").is_file()  # noqa: E731

    def act(rank: int) -> None:
        warnings.simplefilter("ignore")
        with ExitStack() as without:
            for place, instead in WITHOUT.items():
                without.enter_context(patch(place, instead))
            for name in left:
                refused = ""
                try:
                    kind.train(name, folder / name, trained.model, WAYS[trained.way])
                except UserError as error:
                    refused = str(error)
                if rank == 0:
                    (folder / f"{name}.ended").write_text(refused, encoding="utf-8")

    while left := [name for name in names if not ended(name) and name not in died]:
        folder.mkdir(parents=True, exist_ok=True)
        for name in left:
            shutil.rmtree(folder / name, ignore_errors=True)  # begun by a call that was ended
        codes = wait(fork(trained.processes, act, folder / "processes", timeout=TIMEOUT, quiet=True))
        if any(codes):
            said = [text.strip().splitlines()[-1] for text in words(folder / "processes", trained.processes) if text.strip()]
            lost = [name for name in left if not ended(name)][:1]
            died |= {name: f"processes ended with {codes}: {'; '.join(said)}" for name in lost}
            if not lost:
                break
    return died


# ---- comparing


def runs_of(folder: Path) -> list[Path]:
    """The folders that runs below one are in, as paths in it."""
    return sorted(file.parent.parent.relative_to(folder) for file in folder.rglob("run/metrics.jsonl"))


def apart(one: Path, many: Path, close: dict[str, float]) -> dict[str, float]:
    """What runs of one method are apart, in words, in parts of the tolerance; refusals of other words, or other runs, are infinitely so."""
    lines = [path.with_suffix(".ended").read_text(encoding="utf-8") for path in (one, many)]
    if any(lines):
        return {} if lines[0] == lines[1] else {f"refused by one: {lines[0]!r}; by several: {lines[1]!r}": math.inf}
    told = {} if runs_of(one) == runs_of(many) and runs_of(one) else {"other runs": math.inf}
    for place in runs_of(one) if not told else ():
        saves = (one / place / "run" / "checkpoints").is_dir()  # rounds have a log of their own, and nothing that they train
        numbers = (shares if saves else shares_of_logs)(one / place, many / place, close)
        told |= {f"{place}: {words}": part for words, part in numbers.items()}
    return told


@dataclass
class Row:
    """A line of the table."""

    trained: Trained
    alike: int = 0
    refused: int = 0
    numbers: int = 0
    share: float = 0.0
    farthest: str = ""
    wrong: list[str] | None = None

    def __str__(self) -> str:
        kind, model, way, count = self.trained
        found = f"{self.alike:>5} {self.refused:>7} {len(self.wrong or []):>7} {self.numbers:>8} {self.share:>9.2g}"
        return f"{kind:<15} {model:<5} {way:<6} {count:>2} | {found}  {self.farthest}"


def compared(trained: Trained, names: Sequence[str], root: Path) -> tuple[Row, list[str]]:
    """A row of the table, and what is wrong, a method a line and some of its numbers below it."""
    kind, row, lines = KINDS[trained.kind], Row(trained, wrong=[]), list[str]()
    one = Trained(trained.kind, trained.model, "whole", 1)
    died = train(one, names, root)
    died |= train(trained, names, root)
    for name in names:
        folders = one.folder(root) / name, trained.folder(root) / name
        told = {died[name]: math.inf} if name in died else apart(folders[0], folders[1], kind.tolerance(name, trained.model))
        row.numbers += len(told)
        if told and (most := max(told.values())) >= row.share:
            row.share, row.farthest = most, name
        row.refused += not told
        row.alike += bool(told) and all(part <= 1 for part in told.values())
        if wrong := {words: part for words, part in told.items() if part > 1}:
            assert row.wrong is not None
            row.wrong.append(name)
            lines += [f"  {name}: {len(wrong)} differ"]
            lines += [f"    {words[:300]} ({part:.3g})" for words, part in list(wrong.items())[:SHOWN]]
    return row, lines


# ---- the call


def arguments() -> argparse.Namespace:
    """The call. Errors: exit code 2 and one line."""
    takes = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    takes.add_argument("--only", nargs="*", metavar="KIND", default=list(KINDS), help=f"parts of the names of {', '.join(KINDS)}")
    takes.add_argument("--methods", nargs="*", metavar="NAME", default=[], help="these alone; default: all")
    takes.add_argument("--processes", nargs="*", type=int, default=[2, 4], help="default: 2 4; at most 4")
    takes.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS), help="default: both")
    takes.add_argument("--models", nargs="*", choices=["full", "lora"], default=["full", "lora"], help="default: both")
    takes.add_argument("--keep", type=Path, metavar="DIR", help="where the runs stay, and are not made again")
    call = takes.parse_args()
    call.kinds = [kind for kind in KINDS if any(part in kind for part in call.only)]
    if not call.kinds:
        takes.error(f"--only: got {' '.join(call.only)}, takes parts of {', '.join(KINDS)}")
    known = {name for kind in KINDS.values() for name in kind.names}
    if odd := [name for name in call.methods if name not in known]:
        takes.error(f"--methods: got {odd[0]}, takes names of methods, such as {min(known)}")
    if any(count not in (2, 3, 4) for count in call.processes):
        takes.error(f"--processes: got {' '.join(map(str, call.processes))}, takes 2, 3 and 4: a step has 4 prompts or records")
    return call


def table(call: argparse.Namespace, root: Path) -> int:
    """Prints it, row by row, and returns how many methods differ in it."""
    wrong, methods, began = 0, set[str](), time.monotonic()
    print(f"{'kind':<15} {'model':<5} {'way':<6} {'n':>2} | alike refused differs  numbers     share  of", flush=True)
    for name in call.kinds:
        kind = KINDS[name]
        names = [method for method in kind.names if not call.methods or method in call.methods]
        ways = [Trained(name, model, way, n) for model in kind.models for way in kind.ways for n in call.processes]
        for trained in ways if names else ():
            if trained.model in call.models and trained.way in call.ways:
                row, lines = compared(trained, names, root)
                wrong += len(row.wrong or [])
                methods |= set(names)
                print("\n".join([str(row), *lines]), flush=True)
    print(f"{len(methods)} methods; {wrong} runs differ; {time.monotonic() - began:.0f} s")
    return wrong


def main() -> int:
    """The exit code."""
    call = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        return int(table(call, call.keep or Path(place)) > 0)


if __name__ == "__main__":
    sys.exit(main())
