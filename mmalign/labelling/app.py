"""The page for judging, as an application of FastAPI's: what it shows to whom, and what it takes.

``GET /`` is the page, ``GET /next`` what an annotator has not judged yet, ``POST /judgements`` a word, ``POST /undo`` takes the last one
back, ``GET /outputs/...`` and ``GET /prompts/...`` are pictures and videos. Whoever judges is told neither what made an output nor its
number: outputs stand in an order that is drawn for each item and annotator, and are asked for by their place in it.

Every question but the page's carries the header ``X-Mmalign``, which no page of another site can send unasked.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmalign.conversations import media_of
from mmalign.labelling.agreement import agreement
from mmalign.labelling.items import Item, Items
from mmalign.labelling.judgements import Judgement, Judgements
from mmalign.types import UserError

HEADER = "x-mmalign"
PAGE = Path(__file__).with_name("page.html")
AWAY = 600.0  # seconds after which an item that somebody looks at is free for others


class Desk:
    """What is shown to whom. each: how many annotators judge an item; None: all of them do."""

    def __init__(self, items: Items, judgements: Judgements, *, each: int | None = None, seed: int = 0):
        self.items, self.judgements, self.each, self.seed = items, judgements, each, seed
        self._looking: dict[str, tuple[str, float]] = {}  # annotator -> item, since when
        self._lock = threading.Lock()

    def order(self, item: Item, annotator: str) -> list[int]:
        """The numbers of an item's outputs as they stand before an annotator."""
        order = list(range(len(item.outputs)))
        random.Random(f"{self.seed} {item.id} {annotator}").shuffle(order)
        return order

    def next(self, annotator: str, wanted: str | None = None) -> dict[str, Any]:
        """What an annotator judges next, with the state of the whole; ``item`` is None where nothing is left. wanted: that item."""
        standing = self.judgements.standing()
        with self._lock:
            item = self.items.by_id.get(wanted or "") or self._open(annotator, standing)
            self._looking.pop(annotator, None)
            if item is not None:
                self._looking[annotator] = (item.id, time.monotonic())
        people = Counter(who for _, who in standing)
        agreed = agreement(standing)
        return {
            "item": None if item is None else self.shown(item, annotator),
            "before": _told(standing.get((item.id, annotator)), self.order(item, annotator)) if item is not None else None,
            "items": len(self.items.all),
            "judged": people.get(annotator, 0),
            "people": dict(people),
            "agreement": {
                key: None if isinstance(value, float) and math.isnan(value) else value for key, value in agreed._asdict().items()
            },
        }

    def _open(self, annotator: str, standing: Mapping[tuple[str, str], Judgement]) -> Item | None:
        """The first item that an annotator has not judged and that is still needed."""
        said = Counter(item for item, _ in standing)
        now = time.monotonic()
        looked = Counter(item for who, (item, since) in self._looking.items() if who != annotator and now - since < AWAY)
        mine = {item for item, who in standing if who == annotator}
        return next(
            (one for one in self.items.all if one.id not in mine and (self.each is None or said[one.id] + looked[one.id] < self.each)),
            None,
        )

    def shown(self, item: Item, annotator: str) -> dict[str, Any]:
        """An item as the page takes it: places for what are files."""
        places = range(len(item.outputs))
        words = [item.outputs[output] for output in self.order(item, annotator)] if item.kind == "text" else list(places)
        return {"id": item.id, "kind": item.kind, "outputs": words, "prompt": _prompt(item.prompt)}

    def undo(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Takes an annotator's last word back, and shows what it was about."""
        annotator = str(told.get("annotator", "")).strip()
        return self.next(annotator, self.judgements.undo(annotator))

    def take(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """A judgement as the page sends it, by places; what comes next. Errors: UserError."""
        item = self.items.by_id.get(str(told.get("item")))
        annotator = str(told.get("annotator", "")).strip()
        if item is None:
            raise UserError(f"item: got {told.get('item')!r}, takes one of the {len(self.items.all)} that are judged here")
        order = self.order(item, annotator)
        try:
            ranking = tuple(tuple(order[_place(place)] for place in tier) for tier in told.get("ranking", []))
            wrong = {
                str(order[_place(place)]): [(int(start), int(end)) for start, end in spans]
                for place, spans in dict(told.get("wrong", {})).items()
                if spans
            }
            seconds = float(told.get("seconds", 0.0))
        except (IndexError, TypeError, ValueError) as error:
            raise UserError(f"judgement: got {dict(told)!r}, takes ranking: lists of places 0..{len(order) - 1}, wrong: spans") from error
        at = datetime.now(UTC).isoformat(timespec="seconds")
        grade, bad = told.get("grade", "clearly"), bool(told.get("bad", False))
        self.judgements.say(Judgement(item.id, annotator, ranking, grade, bad, wrong, tuple(order), round(seconds, 1), at))
        return self.next(annotator)


def _place(place: Any) -> int:
    number = int(place)
    if number < 0:
        raise ValueError(f"takes a place, got {place}")
    return number


def _told(judgement: Judgement | None, order: list[int]) -> dict[str, Any] | None:
    """What was said of an item before, by places."""
    if judgement is None:
        return None
    place_of = {output: place for place, output in enumerate(order)}
    return {
        "ranking": [[place_of[output] for output in tier] for tier in judgement.ranking],
        "grade": judgement.grade,
        "bad": judgement.bad,
        "wrong": {place_of[int(output)]: spans for output, spans in judgement.wrong.items()},
    }


def _prompt(prompt: Any) -> list[dict[str, Any]]:
    """A prompt as turns of parts: ``{role, parts: [{type, text | number}]}``, media by their number."""
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    shown, number = [], 0
    for turn in turns:
        content = turn.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        told = []
        for part in parts:
            if part.get("type") == "text":
                told.append({"type": "text", "text": str(part.get("text", ""))})
            else:
                told.append({"type": str(part.get("type")), "number": str(number)})
                number += 1
        shown.append({"role": str(turn.get("role", "")), "parts": told})
    return shown


class Addresses:
    """What is answered at which address; see the top of this file."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def page(self, request: Any) -> Any:
        """``GET /``."""
        from fastapi.responses import HTMLResponse

        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    def current(self, request: Any) -> Any:
        """``GET /next``."""
        annotator = str(request.query_params.get("annotator", "")).strip()
        if not annotator:
            return _error(422, "annotator: takes a name")
        return _json(self.desk.next(annotator, request.query_params.get("item")))

    async def told(self, request: Any) -> Any:
        """``POST /judgements`` and ``POST /undo``."""
        act = self.desk.undo if request.url.path == "/undo" else self.desk.take
        try:
            words = await request.json()
            if not isinstance(words, dict):
                raise ValueError
            return _json(await asyncio.to_thread(act, words))
        except UserError as error:
            return _error(422, str(error))
        except ValueError:
            return _error(400, "takes an object as JSON")
        except OSError as error:
            return _error(507, f"could not be written, and is not kept: {error.strerror}")

    def output(self, request: Any) -> Any:
        """``GET /outputs/PLACE``."""
        item, order = self._asked(request)
        place = request.path_params["place"]
        if item is None or item.kind == "text" or place >= len(order):
            return _error(404, "no such output")
        return _file(self.desk.items.path(item, order[place]))

    def prompt_medium(self, request: Any) -> Any:
        """``GET /prompts/NUMBER``."""
        item, _ = self._asked(request)
        number = request.path_params["number"]
        media = [] if item is None or isinstance(item.prompt, str) else media_of(item.prompt)
        source = media[number].source if number < len(media) else None
        return _file(source) if isinstance(source, (str, Path)) else _error(404, "no such file")

    def _asked(self, request: Any) -> tuple[Item | None, list[int]]:
        item = self.desk.items.by_id.get(request.query_params.get("item", ""))
        return item, [] if item is None else self.desk.order(item, str(request.query_params.get("annotator", "")).strip())


def application(desk: Desk, *, token: str | None = None, hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]")) -> Any:
    """The application; see the top of this file. token: that every question has to bring, where others than this machine can ask. hosts:
    by which names it may be asked for, "*" for any: no site elsewhere can give itself the name of this machine.
    """
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(title="mmalign label", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.middleware("http")
    async def refuse_strangers(request: Any, answer: Any) -> Any:
        key = str(request.query_params.get("key") or request.headers.get(HEADER) or "")
        if token is not None and not hmac.compare_digest(key.encode(), token.encode()):
            return _error(401, "takes the address as it was printed, with its key")
        if request.method == "POST" and HEADER not in request.headers:
            return _error(403, f"takes the header {HEADER}")
        return await answer(request)

    at = Addresses(desk)
    for path, read in (
        ("/", at.page),
        ("/next", at.current),
        ("/outputs/{place:int}", at.output),
        ("/prompts/{number:int}", at.prompt_medium),
    ):
        app.add_route(path, read)
    for path in ("/judgements", "/undo"):
        app.add_route(path, at.told, methods=["POST"])
    return app


def _json(value: Any, status: int = 200) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse(value, status_code=status)


def _error(status: int, line: str) -> Any:
    return _json({"error": line}, status)


def _file(path: str | Path) -> Any:
    """A file as it lies there; another annotator has another order, so that nobody keeps it."""
    from fastapi.responses import FileResponse

    return FileResponse(path, headers={"Cache-Control": "no-store"}) if Path(path).is_file() else _error(404, f"no such file: {path}")
