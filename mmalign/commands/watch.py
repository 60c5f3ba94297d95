"""Runs as they go: a page that this machine serves, of one of them or of several side by side (``mmalign watch``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from mmalign.arguments.ranges import within
from mmalign.files import write_text
from mmalign.report.comparison import comparison
from mmalign.report.read import read
from mmalign.report.watching import LOCAL, Watch, application
from mmalign.runs.folder import found
from mmalign.serving.asking import LOOPBACK
from mmalign.serving.listening import answer, bound
from mmalign.types import UserError

__all__ = ["side_by_side", "watch"]


def watch(
    folders: Sequence[str] = ("runs",), *, host: str = "127.0.0.1", port: Annotated[int, within(0, 65535)] = 8300,
    ready: Callable[[str], None] = lambda address: None, say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Serves the pages of runs until it is told to stop (SIGTERM, Ctrl-C); a new step appears within seconds, and nothing is written.

    Args:
        folders: runs, or folders of runs, of which the newest are shown, also those that begin later.
        host, port: where it listens; 0: a free port. Whoever can reach another host than this machine's own sees the runs.
        ready: hears the address once it can be opened. say: hears lines.

    Errors: UserError for a folder that is not there, a port in use, and packages that are missing (the extra ``label``).
    """
    if absent := [package for package in ("fastapi", "uvicorn") if find_spec(package) is None]:
        raise UserError(f"watch: needs the package {absent[0]}, which is not installed: pip install 'mmalign[label]'")
    places = [_place(folder) for folder in folders]
    watched = Watch(places)
    with contextlib.closing(bound(host, port, "port")) as socket:
        address = f"http://{host}:{socket.getsockname()[1]}/"
        say(f"watch {', '.join(map(str, places))} at {address} ({len(watched.runs())} runs now; Ctrl-C ends it)")
        ready(address)
        answer(application(watched, hosts=LOCAL if host in LOOPBACK else ["*"]), socket, stop=1.0)


def side_by_side(folders: Sequence[str], *, out: str) -> Path:
    """Writes the page of several runs beside each other as one file, which needs nothing beside itself; returns its path.

    folders: as of ``watch``. out: the file.

    Errors: UserError for fewer than two runs, a name that is none of HTML, and a page that cannot be written.
    """
    runs = Watch([_place(folder) for folder in folders]).runs()
    if len(runs) < 2 or not out.endswith(".html"):
        raise UserError(f"out: got {out} and {len(runs)} runs, takes a name that ends in .html, and two runs or more")
    try:
        return write_text(Path(out), comparison([read(path) for path in runs]))
    except OSError as error:
        raise UserError(f"out: {out} cannot be written: {error}") from error


def _place(word: str) -> Path:
    """A run by its path or its name under runs/, or a folder of runs. Errors: UserError for neither."""
    place = found(word) or Path(word)
    if not place.is_dir():
        raise UserError(f"{word}: not there; takes a run's folder, its name under runs/, or a folder of runs")
    return place
