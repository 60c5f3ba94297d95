"""Configs that are wrong in every way that a seed thinks of, through `mmalign check`: each is fine or refused in lines, and nothing else.

    python scripts/fuzz/configs.py --count 10000 --seed 0
    python scripts/fuzz/configs.py --count 0 --train 500    # those of the small worlds that check passes, through a step of training
    python scripts/fuzz/configs.py --only 17 --keep out     # one of those again, and what it printed

A config of mmalign's own is changed in one to four places: values of the wrong type, sign and size, keys that are misspelled, moved, left
out or doubled, nodes in place of values and values in place of nodes, names that are none, text that is no YAML, and changes on the
command line. Everything happens in this process, by what `check` calls. Ends with 1 where anything but a `UserError` came out.

For training, configs of the worlds are made small, and parts of them are exchanged for those of others. What `check` passes is trained by
the command line's own `train`, in a process that is forked from this one: it ends as a run, or with 2 and lines; a run that says that it
learned nothing is a run. What takes more of the processor or of memory than it is given here is counted by itself: a config may well ask
for a lot.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmalign.config import check, external_code, load
from mmalign.lookup import catalogue
from mmalign.types import UserError

WORLDS = ("text", "text_small", "digits", "digit_scenes")
SMALL = {
    "steps": 4, "prompts": 4, "group": 4, "records": 4, "every": 1, "samples": 1, "columns": 1, "count": 2, "each": 1, "groups": 4,
    "best_of": 2, "num_inference_steps": 2, "checkpoint_every": 1,
}  # fmt: skip
"""What numbers become, so that a step takes a second."""
NEAR = [0, 1, 2, 3, 5, -1, 0.0, 0.1, 0.5, 1.0, 1.5, 1e-9, 1e9, -0.5, None, True, "none", float("inf")]
"""In place of a number: what a range may have forgotten."""
LIMITS = {resource.RLIMIT_CPU: 40, resource.RLIMIT_AS: 16 * 2**30}
"""Seconds and bytes of a run."""
LEARNED_NOTHING = re.compile(r"learned nothing|stopped learning")

SLOW = 20.0  # seconds of the processor: no config takes that long to be read

NUMBERS = [
    0, -1, 1, 2, -5, 10**6, 10**12, 10**18, 2**63, -(2**63) - 1, 2**64, 10**400, 0.0, -0.0, -1.0, 0.5, 1.0, 1.5, 2.0, 1e-300, 1e300,
    float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
WORDS = [
    "", " ", ".", "..", "a.b", "x" * 3000, "none", "None", "null", "true", "1e-4", "nan", "bf16", "cudaa", "cpu", "auto", "grpo", "dpo",
    "adamw", "jpeg", "digits", "digit_prompts", "online", "offline", "first", "os.system", "builtins.eval", "mmalign.types.Method",
    "prompts.txt", "/dev/null", "/no/such/file.txt", "http://127.0.0.1:9/v1", "\x00", "\u2028", "\U0001f600", "ключ", "use", "a b", "[",
    "${steps}", "${oc.env:HOME}", "${nope.nope}", "${", "???", "!!python/object:os.system", "*", "&a", "- a", "a: b", "1" * 5000, "-",
]  # fmt: skip
OTHERS: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    {"": None},
    {"use": None},
    {"use": []},
    {"use": {"use": "x"}},
    {"a": 1},
    [1, "a", None],
]
NODES = [
    {"use": "."}, {"use": ""}, {"use": "grpo"}, {"use": "nothing_of_the_kind"}, {"use": "os.system", "command": "exit 3"}, {"use": "jpeg"},
    {"use": "adamw", "rate": -1}, {"use": "ddim", "eta": -3}, {"use": "flow_sde", "noise_level": "x"}, {"use": "first_fraction"},
    {"use": "online", "policy": {}}, {"use": "digits"}, {"use": "weighted_sum", "weights": {"a": "b"}}, {"use": "no.such.module"},
    {"use": "kto", "like": 3}, {"use": "dpo", "like": "TRL"}, {"use": 3},
]  # fmt: skip
TEXTS = [
    "\t", "a: &x [*x]", "? [a, b]\n: c", "<<: *nope", "%YAML 9.9", "---\na: 1\n---\nb: 2", "!!binary x", "!!python/name:os.system", "\x07",
    "a: 1\na: 2", "- 1", "}", "]", ": :", "'", '"', "|", ">", "@", "`", "\ufeff", "2001-01-01", "12:30:45", "0o7", "0x_f", ".inf", "1_000",
    "1" * 5000, "[" * 3000, "{a: " * 300 + "1" + "}" * 300, "&a " * 50, "é", "\ud7ff", "steps: 1" + "0" * 5000, "x: " + "[1," * 800,
]  # fmt: skip
OVERRIDES = [
    "steps", "=", "=1", "steps=", "steps=[1", "a.b.c=1", "steps.x=1", "policy=1", "policy.use=", "policy.lora=[]", "policy.lora.rank=1e999",
    "rewards[0]=1", "rewards[0].a=1", "run.trackers[0]=x", "run.trackers[9]=x", "run.trackers=[x]", "method.use=kto", "method=kto",
    "optimizer.use=sgd", "use=offline", "batch.prompts=${batch.group}", "batch.prompts=${batch.prompts}", "..=1", "a..b=1",
    ".a=1", "a.=1", "steps=" + "1" * 5000, "steps=" + "[" * 2000, "x=" + "{a: " * 200, "batch={}", "batch=null", "policy.schedule=null",
    "evaluation.stop.judge=nobody", "evaluation.call.nothing=1", "method.clip=-1", "run.seed=1e400", "a[=1", "a]=1", "[0]=1", "a[b]=1",
]  # fmt: skip


@dataclass
class Outcome:
    """What came out: how many were fine and refused, and what else, each with the file that shows it."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a config."""
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(config: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A config with one thing changed."""
    made = copy.deepcopy(config)
    path = chance.choice(list(places(made)) or [("use",)])
    home: Any = made
    for key in path[:-1]:
        home = home[key]
    last = path[-1]
    what = chance.randrange(12)
    if what == 0 and isinstance(home, dict):  # a key by another name
        key = str(last)
        place = chance.randrange(len(key) + 1)
        home[chance.choice([key[:place] + key[place + 1 :], key[:place] + "x" + key[place:], key.upper(), "", key + ".a"])] = home.pop(last)
    elif what == 1:
        del home[last]
    elif what == 2 and isinstance(home, dict):  # one key more
        home[chance.choice(["", "use", "like", "a.b", "seed", "call", "rank", 3, None, True, "x" * 400])] = value_of(config, chance)
    elif what == 3:  # deep
        for _ in range(chance.choice([1, 2, 5, 60])):
            home[last] = chance.choice([[home[last]], {"a": home[last]}, {"use": home[last]}])
    else:
        home[last] = value_of(config, chance)
    return made


def value_of(config: dict[str, Any], chance: random.Random) -> Any:
    """A value that may be wrong, or that stands elsewhere in the config."""
    home: Any = config
    for key in chance.choice(list(places(config)) or [()]):
        home = home[key]
    return copy.deepcopy(chance.choice([chance.choice(NUMBERS), chance.choice(WORDS), chance.choice(OTHERS), chance.choice(NODES), home]))


def damaged(text: str, chance: random.Random) -> bytes:
    """Text with something in it that no YAML, or another YAML, has there."""
    place = chance.randrange(len(text) + 1)
    what = chance.randrange(5)
    if what == 0:
        return text[:place].encode()
    if what == 1:
        return (text[:place] + chance.choice(TEXTS) + text[place:]).encode("utf-8", "surrogatepass")
    if what == 2:
        return text[:place].encode() + bytes(chance.randrange(256) for _ in range(3)) + text[place:].encode()
    lines = text.splitlines(keepends=True)
    line = chance.randrange(len(lines))
    if what == 3:
        return "".join([*lines[:line], *lines[line + 1 :]]).encode()
    return "".join([*lines[:line], chance.choice(TEXTS) + "\n", *lines[line:]]).encode("utf-8", "surrogatepass")


def case(texts: list[str], chance: random.Random) -> tuple[bytes, list[str]]:
    """The bytes of a config, and changes on the command line."""
    text = chance.choice(texts)
    overrides = [chance.choice(OVERRIDES)] if chance.random() < 0.15 else []
    if chance.random() < 0.15:
        return damaged(text, chance), overrides
    config = yaml.safe_load(text)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 4])):
        config = changed(config, chance)
    try:
        text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    except RecursionError:  # of PyYAML; JSON, which is YAML too, goes deeper
        text = json.dumps(config)
    return text.encode("utf-8", "surrogatepass"), overrides


def fuzz(count: int, seed: int, keep: Path | None = None) -> Outcome:
    """Checks so many configs. keep: a folder for the files that show a fault."""
    texts = [path.read_text(encoding="utf-8") for path in catalogue.configs().values()]
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fuzzed.yaml"
        for number in range(count):
            content, overrides = case(texts, random.Random(f"{seed}/{number}"))
            file.write_bytes(content)
            began, fault = time.process_time(), ""
            try:
                config = load(file, overrides)
                lines = check(config)
                external_code(config)
                verdict = "refused" if lines else "fine"
                if any("\n" in line or not line for line in lines):
                    verdict, fault = "fault", f"more than a line: {lines}"
            except UserError as error:
                verdict = "refused"
                if "\n" in str(error) or not str(error):
                    verdict, fault = "fault", f"more than a line: {error}"
            except Exception as error:  # what this script looks for
                verdict, fault = "fault", f"{type(error).__name__}: {str(error)[:300]}"
            seconds = time.process_time() - began
            if seconds > SLOW:
                verdict, fault = "fault", f"took {seconds:.0f} s"
            outcome.counts[verdict] += 1
            outcome.slowest = max(outcome.slowest, seconds)
            if fault:
                outcome.faults.append(f"{seed}/{number} {overrides}: {fault}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}_{number}.yaml").write_bytes(content)
    return outcome


# ---- a step of training


def small(config: Any, key: str = "") -> Any:
    """A config of a world whose numbers of things are those of ``SMALL``."""
    if isinstance(config, dict):
        return {name: small(item, str(name)) for name, item in config.items() if name != "micro_rows"}
    if isinstance(config, list):
        return [small(item) for item in config]
    return min(config, SMALL[key]) if key in SMALL and type(config) is int else config


def exchanged(config: dict[str, Any], others: list[dict[str, Any]], chance: random.Random) -> dict[str, Any]:
    """A config with one part as another has it, or one number changed a little, or anything at all changed."""
    what = chance.randrange(10)
    if what == 0:
        return changed(config, chance)
    made: dict[str, Any] = copy.deepcopy(config)
    if what < 6:  # a whole part, or one inside of evaluation, policy, batch
        home, theirs = made, chance.choice(others)
        key = chance.choice(sorted({*home, *theirs} - {"use", "steps", "run"}, key=str))
        if isinstance(home.get(key), dict) and isinstance(theirs.get(key), dict) and chance.random() < 0.5:
            home, theirs = home[key], theirs[key]
            key = chance.choice(sorted({*home, *theirs}, key=str))
        home.pop(key, None)
        if key in theirs:
            home[key] = copy.deepcopy(theirs[key])
        return made
    numbers = [path for path in places(made) if type(_at(made, path)) in (int, float) and path[0] != "run"]
    path = chance.choice(numbers)
    _at(made, path[:-1])[path[-1]] = chance.choice(NEAR)
    return made


def _at(config: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        config = config[key]
    return config


def trained(content: str, folder: Path) -> tuple[int, str]:
    """(what `mmalign train` ends with, what it prints), in a process of its own; minus the signal where one ended it."""
    from mmalign.cli import app

    file, log = folder / "fuzzed.yaml", folder / "log"
    file.write_text(content, encoding="utf-8")
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            for what, limit in LIMITS.items():
                resource.setrlimit(what, (limit, limit))
            os.chdir(folder)
            app(args=["train", str(file)])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")


def ending(code: int, text: str) -> str:
    """One word for how a training ended; ``fault`` for what it may not end with."""
    memory = re.search(r"MemoryError|can't allocate memory|out of memory", text)
    if code in (-signal.SIGXCPU, -signal.SIGKILL) or (code and memory):
        return "large"
    if code == 0 or (code == 1 and LEARNED_NOTHING.search(text)):
        return "run"
    return "refused" if code == 2 and text.strip() and "Traceback" not in text else "fault"


def training(count: int, seed: int, keep: Path | None = None, only: int | None = None) -> Outcome:
    """Trains so many of the configs that `check` passes."""
    names = [name for name in catalogue.configs() if name.split("/")[0] in WORLDS]
    worlds = [{**small(load(name)), "steps": 1} for name in names]
    outcome, number = Outcome(), -1
    with tempfile.TemporaryDirectory() as place:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _warm(Path(place))
        while sum(outcome.counts[kind] for kind in ("run", "refused", "fault")) < count:
            number = number + 1 if only is None else only
            chance = random.Random(f"train/{seed}/{number}")
            config = chance.choice(worlds)
            for _ in range(chance.choice([1, 1, 2, 3])):
                config = exchanged(config, worlds, chance)
            config = {
                **config,
                "run": {**({} if not isinstance(config.get("run"), dict) else config["run"]), "folder": place, "name": f"{number}"},
            }
            config["steps"] = min(config["steps"], 1) if type(config.get("steps")) is int else config.get("steps", 1)
            if check(config) or external_code(config):
                outcome.counts["not passed"] += 1
                if only is not None:
                    raise SystemExit("\n".join(check(config)))
                continue
            content = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
            began = time.monotonic()
            code, text = trained(content, Path(place))
            outcome.slowest = max(outcome.slowest, time.monotonic() - began)
            outcome.counts[ending(code, text)] += 1
            if ending(code, text) == "fault":
                outcome.faults.append(f"train {number}: ended with {code}: {text.strip().splitlines()[-1:]}")
            if keep is not None and (ending(code, text) == "fault" or only is not None):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"train_{seed}_{number}.yaml").write_text(content + "\n# " + text.replace("\n", "\n# "), encoding="utf-8")
            shutil.rmtree(Path(place) / f"{number}", ignore_errors=True)
            if only is not None:
                break
    return outcome


def _warm(place: Path) -> None:
    """Imports what runs of the worlds import, and reads what they read, so that forked ones need not."""
    import torch

    from mmalign.config import build

    torch.set_num_threads(1)
    for number, name in enumerate(("text/grpo", "text/dpo", "digits/grpo", "digits/dpo", "digit_scenes/grpo")):
        config = small(load(name))
        build({**config, "steps": 1, "run": {"folder": str(place), "name": f"warm{number}", "trackers": []}})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="how many through check")
    parser.add_argument("--train", type=int, default=0, help="how many that check passes through a step of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the files that show a fault")
    parser.add_argument("--only", type=int, help="the training of this number alone")
    call = parser.parse_args()
    faults = []
    if call.count and call.only is None:
        began = time.monotonic()
        checked = fuzz(call.count, call.seed, call.keep)
        counts = ", ".join(f"{checked.counts[kind]} {kind}" for kind in ("fine", "refused", "fault"))
        print(
            *checked.faults,
            f"{call.count} configs in {time.monotonic() - began:.0f} s: {counts}; slowest {checked.slowest:.1f} s",
            sep="\n",
        )
        faults += checked.faults
    if call.train or call.only is not None:
        began = time.monotonic()
        ended = training(call.train or 1, call.seed, call.keep, call.only)
        counts = ", ".join(f"{ended.counts[kind]} {kind}" for kind in ("run", "refused", "large", "fault", "not passed"))
        print(*ended.faults, f"trained in {time.monotonic() - began:.0f} s: {counts}; slowest {ended.slowest:.1f} s", sep="\n")
        faults += ended.faults
    raise SystemExit(bool(faults))
