"""Kinds 17 to 25: ends of runs, time and memory, code in configs, secrets, signals, resumes, wrong settings, damaged data, fetching."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from readings import png
from user import OFFLINE, ONLINE, PAIRS, User, fault

import mmalign as mm
from mmalign import fetching
from mmalign.media import Broken, Limits

LONG = {"steps": 2000, "run.checkpoint_every": 1}


# ---- 17


@fault(17, "a judge that misses an answer at the first evaluation and none at the last", "finished after 2 steps(.|\n)*exit 0")
def judge(user: User) -> str:
    return user.train(ONLINE, {"evaluation.judges": {"gold": {"use": "own.first_misses"}}})


@fault(17, "metrics whose keys vary", "finished after 2 steps(.|\n)*exit 0")
def metrics(user: User) -> str:
    return user.train(ONLINE, {"evaluation.metrics": {"odd": {"use": "own.varying"}}})


@fault(17, "a page that cannot be written", "finished after 2 steps(.|\n)*exit 0")
def blocked_page(user: User) -> str:
    (user.folder / "runs/r").mkdir(parents=True)
    user.train(ONLINE, {"steps": 1})
    shutil.rmtree(user.folder / "runs/r", ignore_errors=True)
    return user.train(ONLINE, {"rewards": {"plain": {"use": "own.in_the_way"}}})


# ---- 18


def hostile(what: str, line: str, call: Any, shows: str = "^[0-9.]+ after [0-9]s") -> None:
    @fault(18, what, shows)
    def act(user: User) -> str:
        start = time.process_time()
        return user.python(line, lambda: f"{float(call()):.1f} after {time.process_time() - start:.0f}s")


hostile(
    r"\boxed{1e1000000000} hangs math_answer", r"math_answer()([r'\boxed{1e1000000000}'], ['q'], answer=['1'])",
    lambda: mm.rewards.math_answer()([r"\boxed{1e1000000000}"], ["q"], answer=["1"])[0],
)  # fmt: skip
hostile(
    "jigsaw on 5,000 digits ends the run", "jigsaw()(['<answer>' + '1' * 5000 + '</answer>'], ['q'], order=[[1, 2, 3]])",
    lambda: mm.rewards.jigsaw()(["<answer>" + "1" * 5000 + "</answer>"], ["q"], order=[[1, 2, 3]])[0],
)  # fmt: skip
hostile("quadratic patterns in format", "format()(['<think>' * 20000], ['q'])", lambda: mm.rewards.format()(["<think>" * 20_000], ["q"])[0])


def sandboxed(what: str, code: str) -> None:
    @fault(18, f"code under test: {what}", "^0.0 after [0-9]s")
    def act(user: User) -> str:
        start = time.monotonic()
        reward = mm.rewards.code_tests(seconds=1)
        tests = [["assert 1 == 1"]]
        text = [f"```python\n{code}\n```"]
        return user.python(
            f"code_tests(seconds=1)({text})",
            lambda: f"{float(reward(text, ['q'], tests=tests)[0]):.1f} after {int((time.monotonic() - start) // 4)}s",
        )


sandboxed("a fork bomb", "import os\nwhile True:\n    os.fork()")
sandboxed("setsid with prctl", "import ctypes, os, time\nos.setsid()\nctypes.CDLL(None).prctl(1, 0)\ntime.sleep(60)")
sandboxed("memory", "x = []\nwhile True:\n    x.append(bytes(10**7))")
sandboxed("a fifo in place of the output", "import os\nos.mkfifo('out')\nopen('out').read()")
DAEMONS = """import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        os.fork() and os._exit(0)
        time.sleep(60)
time.sleep(60)"""
sandboxed("daemons by double forks", DAEMONS)


@fault(18, "a reward has a time limit of its own", "^nan|nan")
def limited(user: User) -> str:
    def slow(outputs: Any, prompts: Any, **columns: Any) -> Any:
        time.sleep(3)
        return [1.0 for _ in outputs]

    return user.python(
        "mm.rewards.time_limit(slow, seconds=0.5)(['a'], ['q'])", lambda: mm.rewards.time_limit(slow, seconds=0.5)(["a"], ["q"])
    )


# ---- 19


@fault(19, "mmalign check runs os.system", "os.system(.|\n)*^not run$")
def check_system(user: User) -> str:
    printed = user.mmalign("check", user.config(ONLINE, {"rewards": {"x": {"use": "os.system", "command": "touch ran"}}}))
    return printed + ("\nRUN" if (user.folder / "ran").exists() else "\nnot run")


@fault(19, "train says which outside names it imports, before it does", "imports code from outside of mmalign: own.constant")
def said(user: User) -> str:
    return user.train(ONLINE, {"rewards": {"x": {"use": "own.constant"}}, "steps": 1})


def trusting(command: str, *more: str) -> None:
    @fault(19, f"{command} on a run's folder that names outside code", "--trust(.|\n)*exit 2")
    def act(user: User) -> str:
        user.train(ONLINE, {"method": {"use": "own.method"}, "steps": 1})
        return user.mmalign(command, "runs/r", *more)


trusting("sample", "--prompt", "the name of")
trusting("export")


@fault(19, "the working folder hides a library", "exit 0")
def hides(user: User) -> str:
    user.write("yaml.py", "raise RuntimeError('the wrong yaml')\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-P", "-c", "from mmalign.cli import main; main()", "list", "kernels"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    user.commands.append("mmalign list kernels  # beside a yaml.py of one's own")
    return f"{done.stdout[-200:]}{done.stderr[-300:]}\nexit {done.returncode}"


# ---- 20


@fault(20, "${oc.env:KEY} in config.yaml and report.html", "^kept out of both")
def secret(user: User) -> str:
    os.environ["FAULTS_KEY"] = "hunter2-secret"
    try:
        user.train(ONLINE, {"rewards": {"a": {"use": "own.keyed", "key": "${oc.env:FAULTS_KEY}"}}, "steps": 1})
    finally:
        del os.environ["FAULTS_KEY"]
    files = [place for place in (user.folder / "runs/r").rglob("*") if place.is_file()]
    where = [place.name for place in files if b"hunter2-secret" in place.read_bytes()]
    written = "oc.env:FAULTS_KEY" in (user.folder / "runs/r/config.yaml").read_text()
    return f"{where or 'kept out of both'}; config.yaml says ${{oc.env:FAULTS_KEY}}: {written}"


# ---- 21


def signalled(name: str, code: int) -> None:
    @fault(21, f"{name} saves like the first Ctrl-C; exit {code}", f"step [0-9]+ is saved|--resume(.|\n)*exit {code}")
    def act(user: User) -> str:
        config = user.config(ONLINE, LONG)
        command = [sys.executable, "-W", "ignore", "-m", "mmalign", "train", config]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(1200):
            if list((user.folder / "runs").rglob("state.json")) or running.poll() is not None:
                break
            time.sleep(0.1)
        running.send_signal(getattr(signal, name))
        out, _ = running.communicate(timeout=60)
        user.commands.append(f"mmalign train c.yaml, and {name}")
        return f"{out[-600:]}\nexit {running.returncode}"


signalled("SIGTERM", 143)
signalled("SIGHUP", 129)
signalled("SIGINT", 130)


def stopping(what: str, way: str, shows: str) -> None:
    @fault(21, what, shows + "(.|\n)*exit [12]")
    def act(user: User) -> str:
        reward = {"use": "own.stops", "at": 4, "what": way}
        return user.train(
            ONLINE, {"rewards": {"x": reward}, "steps": 6, "evaluation": {"every": 99, "prompts": ["the name of"], "samples": 1}}
        )


stopping("a reward that raises", "raises", "is saved, continue with --resume")
stopping("a reward that is NaN", "nan", "scores are NaN|NaN")
stopping("out of memory", "memory", "out of memory")


def short(what: str, most: int, shows: str) -> None:
    @fault(21, f"no memory in a pass of an update, {what}", shows)
    def act(user: User) -> str:
        return user.train(ONLINE, {"method": {"use": "own.hungry", "most": most}, "batch.micro_rows": 8, "run.dead_steps": None})


short("half fits", 4, r"passes of 4 rows, and so from here on: batch.micro_rows was 8(.|\n)*finished after 2 steps(.|\n)*exit 0")
short("nor in half of it", 3, r"again, with batch.micro_rows halved to 4.*takes a smaller batch.micro_rows(.|\n)*exit 2")


# ---- 22


def resumed(what: str, damage: Any, shows: str) -> None:
    @fault(22, what, shows)
    def act(user: User) -> str:
        user.train(ONLINE, {"steps": 3, "run.checkpoint_every": 1})
        run = user.folder / "runs/r"
        damage(run, sorted((run / "checkpoints").iterdir()))
        return user.train(ONLINE, {"steps": 4, "run.checkpoint_every": 1}, "--resume")


def unreadable(run: Path, places: list[Path]) -> None:
    for place in places:
        (place / "state.json").write_text("{")


def by_hand(run: Path, places: list[Path]) -> None:
    state = json.loads((places[-1] / "state.json").read_text())
    (places[-1] / "state.json").write_text(json.dumps({**state, "step": 1}))


resumed("all checkpoints are unreadable", unreadable, "no checkpoint can be read, so there is nothing to resume")
resumed("state.json changed by hand", by_hand, "state.json has changed since it was written.*skipped")
resumed("a torn broken.jsonl", lambda run, places: (run / "broken.jsonl").write_text('{"id": "a'), "finished after 4 steps")
resumed("stray temporary folders", lambda run, places: (run / "checkpoints" / ".tmp-1").mkdir(), "finished after 4 steps")


@fault(22, "a folder whose making was interrupted is free", "finished after 2 steps")
def unmade(user: User) -> str:
    (user.folder / "runs/r").mkdir(parents=True)
    return user.train(ONLINE)


@fault(22, "a resume of no run, before a model is loaded", "^runs/r: got --resume .*, but there is no run here")
def nothing(user: User) -> str:
    return user.train(ONLINE, {"policy.model": "no/such/model"}, "--resume")


@fault(22, "two processes in one folder", "another process trains there")
def locked(user: User) -> str:
    from filelock import FileLock

    user.train(ONLINE, {"steps": 1})
    with FileLock(str(user.folder / "runs/r/.lock")):
        return user.train(ONLINE, {}, "--resume")


# ---- 23


def refused(key: str, value: Any, shows: str) -> None:
    @fault(23, f"{key}: {str(value)[:40]}", shows + "(.|\n)*exit 2")
    def act(user: User) -> str:
        user.write("pairs.jsonl", PAIRS)
        base = OFFLINE if "records" in key else ONLINE
        printed = user.mmalign("check", user.config(base, {key: value}))
        user.commands[-1] += f"  # {key}: {str(value)[:60]}"
        return printed


refused("optimizer.max_norm", -1, "optimizer.max_norm: got -1")
refused("optimizer.max_norm", 0, "optimizer.max_norm: got 0")
refused("optimizer.warmup", -5, "optimizer.warmup: got -5")
refused("optimizer.decay", {"shape": "linear", "steps": -3}, "optimizer.decay.steps: got -3")
refused("optimizer.rate", float("nan"), "optimizer.rate: got nan")
refused("batch.records", 1e12, "batch.records: got")
refused("evaluation.samples", -1, "evaluation.samples: got -1")
refused("evaluation.every", 0, "evaluation.every: got 0")
refused("prompts", {"a": 1}, "prompts")
refused("method", {"use": "."}, "method")


@fault(23, "a number of 5,000 digits", "digits.*(.|\n)*exit 2")
def digits(user: User) -> str:
    user.write("long.yaml", f"use: online\nsteps: {'1' * 5000}\n")
    return user.mmalign("check", "long.yaml")


@fault(23, "deep nesting", "exit 2")
def deep(user: User) -> str:
    user.write("deep.yaml", "use: online\nprompts: " + "[" * 3000 + "]" * 3000 + "\n")
    return user.mmalign("check", "deep.yaml")


# ---- 24


@fault(24, "a tar of 2 KiB with a member of 6 GiB", "a.tar.* more than [0-9,]+ bytes")
def bomb(user: User) -> str:
    with tarfile.open("a.tar", mode="w") as archive:
        info = tarfile.TarInfo("1.chosen.png")
        info.size = 6 * 2**30
        archive.addfile(info)
    return user.python("mm.data.pairs('a.tar')", lambda: mm.data.pairs("a.tar").first(1))


def rows(what: str, name: str, content: bytes, shows: str) -> None:
    @fault(24, what, shows)
    def act(user: User) -> str:
        (user.folder / name).write_bytes(content)

        def read() -> str:
            records = mm.data.texts(name)
            return f"{records.first(9)} broken: {records.broken}"

        return user.python(f"mm.data.texts({name!r})", read)


GOOD = (json.dumps(PAIRS[0]) + "\n").encode()
rows("damaged parquet", "a.parquet", b"PAR1" + bytes(40) + b"PAR1", "UserError: ")
rows("deep JSON", "a.jsonl", GOOD + b"[" * 100_000 + b"\n", "broken: {'a.jsonl:2'")
rows("a number of 5,000 digits", "a.jsonl", GOOD + b'{"prompt": ' + b"1" * 5000 + b"}\n", "broken: {'a.jsonl:2'")


def damaged(kind: str, data: bytes) -> None:
    @fault(24, f"{kind} is a broken record", "^Broken: ")
    def act(user: User) -> str:
        (user.folder / "a.png").write_bytes(data)

        def read() -> str:
            from mmalign.media import picture

            try:
                return str(picture("a.png", Limits()))
            except Broken as error:
                return f"Broken: {error}"

        return user.python("media.picture('a.png')", read)


damaged("DDS", b"DDS " + bytes(200))
damaged("half an AVIF", png((32, 32), "AVIF")[:150])
damaged("half a TIFF", png((32, 32), "TIFF")[:200])


@fault(24, "a damaged run folder, in report", "exit [02]")
def damaged_run(user: User) -> str:
    user.train(ONLINE)
    (user.folder / "runs/r/metrics.jsonl").write_bytes(b'{"step": 1, \xff\n[]\n{"step": "x"}')
    return user.mmalign("report", "runs/r")


# ---- 25


def address(name: str) -> None:
    @fault(25, f"{name} is not public", "UserError: .*not public|not a public")
    def act(user: User) -> str:
        return user.python(
            f"fetching.fetch('https://{name}/a.png', ...)", lambda: fetching.fetch(f"https://{name}/a.png", most=1000, seconds=5)
        )


for _name in ("192.0.0.192", "[64:ff9b:1::1]", "[::ffff:0:127.0.0.1]", "[fec0::1]", "127.0.0.1"):
    address(_name)
