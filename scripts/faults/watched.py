"""Of kinds 13, 15, 17 and 25, what is watched while it goes: the page in a browser, bars, pipes, trackers, servers that drip."""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from user import OFFLINE, ONLINE, PIPELINE, User, fault

import mmalign as mm
from mmalign import fetching

# ---- 13: the page in a browser

PRESSES = """
<script>
addEventListener("load", () => {
  const lines = [], zoom = document.getElementById("zoom"), shown = ["zoomed-words", "zoomed-note", "zoomed-scores"];
  const words = () => shown.map((id) => document.getElementById(id).textContent).join(", ");
  const say = (what) => lines.push(`${what}: ${zoom.open ? words() : "closed"}`);
  const press = (key) => zoom.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  say("before");
  document.querySelector(".cells .cell").click(); say("click");
  press("ArrowRight"); say("right");
  press("ArrowDown"); say("down");
  document.getElementById("zoom-close").click(); say("close");
  const seen = document.createElement("pre");
  seen.id = "seen";
  seen.textContent = lines.join("; ");
  document.body.append(seen);
});
</script>
"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@fault(
    13,
    "samples on the page open in full, by click and keys",
    "^before: closed; click: .*seven, Seed 0.*; right: .*Seed 1.*; down: .*two, Seed 1.*; close: closed",
)
def zoom(user: User) -> str:
    if BROWSER is None:
        return "not tried: no Chromium here"
    user.train(PIPELINE, {"evaluation.samples": 2})
    page = user.write("pressed.html", (user.folder / "runs/r/report.html").read_text(encoding="utf-8") + PRESSES)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(user.folder)})
    user.commands.append("chromium runs/r/report.html: a click on the first sample, right, down, Close")
    seen = re.search('<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    return html.unescape(seen[1]) if seen else done.stderr[-500:]


# ---- 15: bars and pipes


def one_bar(name: str, steps: int, **settings: Any) -> None:
    @fault(15, f"one progress bar and one callback for each step under {name}", f"^1 bar, ends at {steps}/{steps}; {steps} callbacks$")
    def act(user: User) -> str:
        pipe, written, heard = mm.worlds.digits(), io.StringIO(), list[int]()
        pipe.set_progress_bar_config(disable=False, file=written, mininterval=0.0, leave=True)

        def listen(pipe: object, step: int, time: object, tensors: object) -> dict[str, object]:
            heard.append(step)
            return {}

        def call() -> str:
            with mm.guide(pipe, mm.worlds.digits_proxy(), guidance=name, **settings):
                pipe("a handwritten seven", num_inference_steps=4, callback_on_step_end=listen)
            bars = [line.split("\r")[-1] for line in written.getvalue().split("\n") if line]
            ends = " and ".join(match[0] for bar in bars if (match := re.search(r"\d+/\d+", bar)))
            return f"{len(bars)} bar, ends at {ends}; {len(heard)} callbacks"

        return user.python(f"with mm.guide(pipe, ..., guidance={name!r}): pipe(..., num_inference_steps=4, callback_on_step_end=...)", call)


one_bar("universal", 4)
one_bar("fk", 4, particles=2)
one_bar("best_of", 8, count=4, rows_at_once=2)
one_bar("freedom", 8, recurrences=2)


def piped(shown: str, write: Callable[[User], Sequence[str]], lines: str) -> None:
    @fault(15, f"compact output in a pipe: {shown}", f"^exit 0, {lines} lines, 0 with control signs, 0 that end in blanks$")
    def act(user: User) -> str:
        words = write(user)
        command = [sys.executable, "-W", "ignore", "-m", "mmalign", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        user.commands.append(f"mmalign {' '.join(words)} | cat")
        rows = done.stdout.decode().split("\n")[:-1]
        signs, blanks = sum(not row.replace("\t", "").isprintable() for row in rows), sum(row != row.rstrip() for row in rows)
        return f"exit {done.returncode}, {len(rows)} lines, {signs} with control signs, {blanks} that end in blanks\n" + "\n".join(rows)


def trains(user: User) -> Sequence[str]:
    return ("train", user.config(PIPELINE, {"steps": 25}))


def makes_pairs(user: User) -> Sequence[str]:
    node = {
        "use": "make_pairs", "policy": OFFLINE["policy"], "prompts": ["the name of", "if the value", "return the"],
        "rewards": {"plain": {"use": "text_plain"}}, "group": 4, "out": "made.jsonl",
    }  # fmt: skip
    return ("pairs", user.config(node))


def evaluates(user: User) -> Sequence[str]:
    user.train(PIPELINE, {"evaluation.judges": {"gold": {"use": "digits_gold"}}})
    return ("eval", "runs/r")


def exports(user: User) -> Sequence[str]:
    user.train(PIPELINE, {"steps": 1})
    return ("export", "runs/r")


piped("train, 25 steps", trains, "1[0-9]")
piped("pairs", makes_pairs, "[1-9]")
piped("eval", evaluates, "3")
piped("export", exports, "[1-9]")
piped("inspect", lambda user: ("inspect", "StableDiffusion3Pipeline"), "[0-9]{2}")
piped(
    "sample", lambda user: ("sample", "digits", "--prompt", "a handwritten seven", "--guidance", "fk", "--reward", "digits_proxy"), "[1-9]"
)
piped("check", lambda user: ("check", user.config(ONLINE)), "1")
piped("list", lambda user: ("list",), "[0-9]{2}")
piped("explain", lambda user: ("explain", "kto"), "[0-9]{2}")

# ---- 17: a tracker that fails

TRACKER = '''"""A tracker whose server is down at one moment."""

import os


def act(what):
    if os.environ["FAILS_AT"] == what:
        raise ConnectionError(f"no network at {what}")


class Run:
    def log(self, values, step=None, **more):
        act("log")

    def finish(self):
        act("finish")


class Table:
    def __init__(self, **more):
        pass


class config:
    @staticmethod
    def update(*values, **more):
        pass


def init(**settings):
    act("start")
    return Run()
'''


def failing(moment: str) -> None:
    @fault(
        17,
        f"a tracker that fails at its {moment} costs one line",
        f"trackers: wandb failed, going on.*{moment}(.|\n)*finished(.|\n)*exit 0, 1 line",
    )
    def act(user: User) -> str:
        user.write("installed/wandb/__init__.py", TRACKER)
        user.write("installed/wandb-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: wandb\nVersion: 1.0\n")
        config = user.config(ONLINE, {"run.trackers": ["wandb"], "evaluation": None})
        search = os.pathsep.join(filter(None, (str(user.folder / "installed"), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "mmalign", "train", config], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": search, "FAILS_AT": moment},
        )  # fmt: skip
        user.commands.append(f"mmalign train c.yaml  # run.trackers: [wandb], whose {moment} raises ConnectionError")
        printed = done.stdout + done.stderr
        return f"{printed}\nexit {done.returncode}, {printed.count('trackers:')} line"


failing("start")
failing("log")
failing("finish")

# ---- 25: a server that drips

DRIPS = {
    "headers": [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 60, b"Content-Length: 1\r\n\r\nx"],
    "one header": [b"HTTP/1.1 200 OK\r\nX: ", *[b"y"] * 60, b"\r\nContent-Length: 1\r\n\r\nx"],
    "a status line": [*[bytes([letter]) for letter in b"HTTP/1.1 200 " + b"O" * 50], b"\r\nContent-Length: 1\r\n\r\nx"],
    "a body": [b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n", *[b"x"] * 60],
}
CERTIFICATE = Path(__file__).with_name("good_org.pem")
"""Of good.org, by itself, for a hundred years; of use to nobody."""


@contextlib.contextmanager
def server(pieces: Sequence[bytes], pause: float) -> Iterator[None]:
    """A host called good.org that says the pieces by TLS, one after each pause."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(CERTIFICATE)
    connect, trusting = socket.create_connection, ssl.create_default_context(cafile=str(CERTIFICATE))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def serve() -> None:
            plain, _ = listening.accept()
            with plain, contextlib.suppress(OSError), inside.wrap_socket(plain, server_side=True) as wire:
                wire.recv(4096)
                for piece in pieces:
                    wire.sendall(piece)
                    time.sleep(pause)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with (
            mock.patch.object(socket, "create_connection", lambda where, timeout: connect(listening.getsockname(), timeout)),
            mock.patch.object(ssl, "create_default_context", lambda: trusting),
            mock.patch.object(fetching, "public_address", lambda host, port: "93.184.215.14"),
        ):
            yield
        thread.join(20)


def drips(what: str) -> None:
    @fault(25, f"the time of a fetch counts {what} that drip", "UserError: .*no whole answer within 0.5 seconds(.|\n)*^after 0.[5-9] s$")
    def act(user: User) -> str:
        began = time.monotonic()
        with server(DRIPS[what], 0.05):
            line = user.python(
                "fetching.fetch('https://good.org/a', most=10_000, seconds=0.5)",
                lambda: fetching.fetch("https://good.org/a", most=10_000, seconds=0.5),
            )
            took = time.monotonic() - began
        return f"{line}\nafter {took:.1f} s"


for _what in DRIPS:
    drips(_what)
