"""Runs as they go, as an application of FastAPI's: their pages, drawn anew where their folders have changed.

``GET /`` is the frame that the pages stand in; it asks ``GET /runs`` every two seconds which there are, and how they stand, and takes
``GET /pages/NUMBER`` or ``GET /comparison`` anew when what it shows has another ``version``. Nothing is written anywhere.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmalign.report.comparison import comparison, told_apart
from mmalign.report.page import render
from mmalign.report.read import read
from mmalign.report.verdict import state

PAGE = Path(__file__).with_name("watch.html")
LOCAL = ("127.0.0.1", "localhost", "[::1]")
MOST = 8  # runs at once


class Watch:
    """Runs, and their pages as they were last drawn. Safe between threads.

    folders: runs, or folders of runs, of which the newest are shown, as they come.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(folders)
        self._pages: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def runs(self) -> list[Path]:
        """The folders of runs: those that were named, and the newest of those below the others; `MOST` at most."""
        named = [folder for folder in self.folders if is_run(folder)]
        below = {path.resolve(): path for folder in self.folders if not is_run(folder) and folder.is_dir() for path in folder.iterdir()}
        newest = sorted((path for path in below.values() if is_run(path)), key=_written, reverse=True)
        return [*named, *newest[: max(0, MOST - len(named))]]

    def told(self) -> list[dict[str, Any]]:
        """Of every run what it is called, how it stands, when something was written last (seconds ago), and what tells its pages apart."""
        runs = self.runs()
        rows = []
        for path, name in zip(runs, told_apart(runs), strict=True):
            ago = max(0.0, time.time() - _written(path))
            rows.append({"name": name, "state": self._state(path), "ago": round(ago), "version": version([path])})
        return rows

    def _state(self, path: Path) -> str:
        return self._drawn(f"state {path}", [path], lambda: state(read(path)))

    def page(self, number: int) -> str:
        """The page of a run: what its ``report.html`` would be now. Errors: LookupError for a number that is none."""
        path = self.runs()[number]
        return self._drawn(f"page {path}", [path], lambda: render(read(path)))

    def comparison(self) -> str:
        """All of them beside each other."""
        paths = self.runs()
        return self._drawn("comparison", paths, lambda: comparison([read(path) for path in paths]))

    def _drawn(self, key: str, paths: Sequence[Path], draw: Callable[[], str]) -> str:
        """What ``draw`` made of the folders as they are now; drawn once for each state that they are in."""
        with self._lock:
            now = version(paths)
            if self._pages.get(key, ("", ""))[0] != now:
                self._pages[key] = (now, draw())
            return self._pages[key][1]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / "config.yaml").is_file()


def _shown(folder: Path) -> Iterator[Path]:
    """The files that a page is made of."""
    for path in (folder, folder / "samples", folder / "answers", folder / "evaluations"):
        if path.is_dir():
            yield from (file for file in path.iterdir() if file.is_file() and file.name not in ("report.html", ".lock"))


def _written(folder: Path) -> float:
    """When something of a run was written last, in seconds since the epoch."""
    return max((_stat(file)[0] for file in _shown(folder)), default=0) / 1e9


def _stat(file: Path) -> tuple[int, int]:
    """(time in nanoseconds, size); 0 for what is gone meanwhile."""
    try:
        stat = os.stat(file)
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def version(folders: Sequence[Path]) -> str:
    """Another one where a file that is shown has changed."""
    told = sorted((str(file), *_stat(file)) for folder in folders for file in _shown(folder))
    return hashlib.blake2b(repr((list(map(str, folders)), told)).encode(), digest_size=8).hexdigest()


def application(watch: Watch, *, hosts: Sequence[str] = LOCAL) -> Any:
    """The application; see the top of this file. hosts: by which names it may be asked for, "*" for any."""
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    def frame(request: Any) -> Any:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    def runs(request: Any) -> Any:
        return JSONResponse({"runs": watch.told()})

    def page(request: Any) -> Any:
        try:
            return HTMLResponse(watch.page(request.path_params["number"]))
        except IndexError:
            return JSONResponse({"error": "no such run"}, status_code=404)

    def beside(request: Any) -> Any:
        return HTMLResponse(watch.comparison())

    app = FastAPI(title="mmalign watch", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    for path, answer in (("/", frame), ("/runs", runs), ("/pages/{number:int}", page), ("/comparison", beside)):
        app.add_route(path, answer)
    return app
