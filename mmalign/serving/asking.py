"""How a server is asked: many questions at once, and for each an answer or a reason why not. What speaks which protocol stands on it.

What may be a passing trouble (no connection, a timeout, 408, 425, 429, 5xx, an answer of another shape) is asked again, after waits that
double: every question here may be asked twice, as none changes anything. A server that was silent is asked one thing, once, before
anything else is sent. What is left without an answer is missing: counted by reason, written to the quarantine where one is named, and
never a number. 401, 403 and 404 are the user's to mend, and stop the run.
"""

from __future__ import annotations

import json
import os
import random
import ssl
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from mmalign.arguments.ranges import Count, Natural, NotNegative, Positive, within
from mmalign.arguments.signatures import Record
from mmalign.types import UserError

PASSING = {408, 425, 429, 500, 502, 503, 504}
MENDABLE = {401: "takes another key", 403: "takes another key", 404: "takes another url or model"}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
LEAST_ASKED, LAST_ASKED = 20, 200  # answers before the missing part of them stops a run, and of how many it is

Question = TypeVar("Question")
Reading = TypeVar("Reading")


class Unreadable(Exception):
    """An answer of the right shape that does not say what was asked; the message is the reason it is missing."""


class Passing(Exception):
    """A trouble that may pass. ``wait``: seconds the server asks for. ``down``: nothing that was an HTTP answer came back."""

    def __init__(self, reason: str, *, wait: float = 0.0, down: bool = False):
        super().__init__(reason)
        self.wait, self.down = wait, down


@dataclass(frozen=True, kw_only=True)
class Asking(Record):
    """How often and how long a server is asked, and how much may be missing.

    key_env: the environment variable that holds the key; it is read when the run begins, sent to that server alone, and never written
    anywhere. timeout: seconds for one answer. retries: further tries. backoff: seconds before the first of them, doubled each time.
    longest_wait: seconds of one wait at most, a ``Retry-After`` included. at_once: questions on their way at a time. failures: the largest
    part of the last 200 answers that may be missing; above it the run stops (1: never). bytes: of the longest answer that is read.
    quarantine: a file that gets a JSON line for every missing answer. certificates_file: of those who vouch for the server (PEM), over
    https, in place of the usual ones.
    """

    key_env: str | None = None
    timeout: Positive = 60.0
    retries: Natural = 3
    backoff: NotNegative = 1.0
    longest_wait: NotNegative = 60.0
    at_once: Count = 8
    failures: Annotated[float, within(0, 1)] = 0.5
    bytes: Annotated[int, within(1)] = 4 * 2**20
    quarantine: str | None = None
    certificates_file: str | None = None


def key_of(place: str, settings: Asking) -> str | None:
    """The key that ``key_env`` names. place: of the settings, for the message. Errors: UserError where the environment has none."""
    if settings.key_env is None:
        return None
    if key := os.environ.get(settings.key_env):
        return key
    raise UserError(f"{place}.key_env: the environment has no {settings.key_env}")


def _vouched(place: str, settings: Asking) -> ssl.SSLContext | bool:
    """Whom an address of https has to show. Errors: UserError for a file that holds no certificates."""
    if settings.certificates_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.certificates_file)
    except (OSError, ssl.SSLError) as error:
        got = f"{place}.certificates_file: got {settings.certificates_file!r}"
        raise UserError(f"{got}, takes a file of certificates (PEM): {error}") from error


class Client:
    """Asks one server; nothing is sent before it is asked.

    name: of the reward, for messages. place: of its settings, as they are named in a config. url: what paths are added to. url_place,
    form: where that is named, and what is taken there, for messages. mendable: status -> what the user is told to do about it; the run
    stops there.

    ``counts``: asked, missing, and missing for each reason; ``dump`` and ``load`` make it a checkpoint's.
    """

    def __init__(  # one argument for each thing that is said of a server
        self, name: str, place: str, settings: Asking, url: str, *, key: str | None, url_place: str, form: str,
        mendable: Mapping[int, str] = MENDABLE,
    ):  # fmt: skip
        import httpx2

        self.name, self.place, self.settings, self.mendable, self._key = name, place, settings, mendable, key
        self.own_place = place.removeprefix(f"{name}.")  # where the name has been said already
        self.counts: Counter[str] = Counter()
        self._last: deque[bool] = deque(maxlen=LAST_ASKED)
        self._waits, self._lock, self._down = random.Random(0), threading.Lock(), False
        try:
            address = httpx2.URL(url.rstrip("/"))
        except httpx2.InvalidURL as error:
            raise UserError(f"{url_place}: got {url!r}, takes {form}: {error}") from error
        if address.scheme not in ("http", "https") or not address.host or address.userinfo:
            raise UserError(f"{url_place}: got {url!r}, takes {form}")
        local = address.host in LOOPBACK
        if key and address.scheme == "http" and not local:
            raise UserError(f"{url_place}: got {url!r}; a key goes over https, or to this machine, alone")
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.timeout,
            trust_env=not local,
            limits=httpx2.Limits(max_connections=settings.at_once),
            verify=_vouched(place, settings),
        )
        self.url = str(address)

    def each(self, questions: Sequence[Question | Unreadable], ask: Callable[[Question], Reading]) -> list[Reading | Unreadable]:
        """What ``ask`` makes of each question, in their order; Unreadable, with the reason, where there is no answer.

        questions: Unreadable in place of one that could not be made: it is missing, for that reason. ask: may raise Unreadable, and
        Passing, after which it is called again.

        Errors: UserError where the server refuses the key or the address.
        """
        answers: list[Reading | Unreadable] = [Unreadable("not asked")] * len(questions)
        silent, give_up = 0, 2 * self.settings.at_once

        def one(place: int, retries: int) -> None:
            nonlocal silent
            if isinstance(question := questions[place], Unreadable):
                answers[place] = question
                return
            if silent >= give_up:
                answers[place] = Unreadable("not asked, as the server does not answer")
                return
            try:
                answers[place] = self._again(lambda: ask(question), retries)
                silent = 0
            except Unreadable as error:
                answers[place], silent = error, 0
            except Passing as error:
                answers[place] = Unreadable(str(error))
                silent = silent + 1 if error.down else 0
            except UserError:
                silent = give_up  # the others need not ask
                raise

        places = list(range(len(questions)))
        if self._down and places:  # a server that was silent is asked one thing first, once
            one(places.pop(0), 0)
            silent = give_up if silent else 0
        with ThreadPoolExecutor(self.settings.at_once) as pool:
            list(pool.map(lambda place: one(place, self.settings.retries), places))
        self._down = silent > 0
        return answers

    def _again(self, ask: Callable[[], Reading], retries: int) -> Reading:
        """One answer, asked again where a trouble may pass. Errors: Passing or Unreadable where there is none."""
        for attempt in range(retries + 1):
            try:
                return ask()
            except Passing as error:
                if attempt == retries:
                    raise
                with self._lock:
                    wait = self.settings.backoff * 2**attempt * (0.5 + self._waits.random())
                time.sleep(min(self.settings.longest_wait, max(wait, error.wait)))
        raise AssertionError("the loop returns or raises")

    def send(self, path: str, body: Any = None) -> bytes:
        """The body of one response: of a POST of ``body`` as JSON, or of a GET. One deadline holds for it, however slowly it drips; waits
        for headers have the timeout each. Errors: Passing, Unreadable, and UserError for what the user has to mend."""
        import httpx2

        ends = time.monotonic() + self.settings.timeout
        content = {} if body is None else {"json": body}
        try:
            with self._client.stream("GET" if body is None else "POST", self.url + path, **content) as response:
                data = b""
                for block in response.iter_bytes():
                    data += block
                    if len(data) > self.settings.bytes:
                        raise Unreadable(f"longer than {self.own_place}.bytes")
                    if time.monotonic() > ends:
                        raise Passing("timeout", down=True)
        except httpx2.TimeoutException as error:
            raise Passing("timeout", down=True) from error
        except httpx2.TransportError as error:
            raise Passing(f"no connection ({type(error).__name__})", down=True) from error
        except (httpx2.DecodingError, httpx2.StreamError) as error:
            raise Passing(f"no readable response ({type(error).__name__})") from error
        status = response.status_code
        if status in self.mendable:
            host = httpx2.URL(self.url).host
            raise UserError(f"{self.place}: HTTP {status} from {host}: {self._excerpt(data)}; {self.mendable[status]}")
        if status in PASSING:
            after = response.headers.get("retry-after", "")
            raise Passing(f"HTTP {status}", wait=float(after) if after.isdecimal() and len(after) < 6 else 0.0, down=status != 429)
        if status != 200:
            raise Unreadable(f"HTTP {status}")
        return data

    def _excerpt(self, data: bytes) -> str:
        """The words of a refusal, short and without the key; of JSON with a line of ``error`` that line."""
        try:
            said = json.loads(data).get("error")
        except (ValueError, AttributeError, RecursionError):
            said = None
        text = " ".join((said if isinstance(said, str) else data[:2000].decode("utf-8", "replace")).split())
        return (text.replace(self._key, "***") if self._key else text)[:300]

    def count(self, reasons: Sequence[str | None], say: Callable[[int], Mapping[str, Any]]) -> None:
        """Counts, quarantines and says what is missing; stops the run where that is too much.

        reasons: of each row; None for one that has its answer. say: row -> what the quarantine shall hold of it.
        """
        missing = Counter(reason for reason in reasons if reason is not None)
        new = [reason for reason in missing if not self.counts[reason]]
        self.counts.update({"asked": len(reasons), "missing": missing.total(), **missing})
        self._last.extend(reason is not None for reason in reasons)
        if missing and self.settings.quarantine:
            path = Path(self.settings.quarantine)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [{"reward": self.name, "reason": reason, **say(row)} for row, reason in enumerate(reasons) if reason is not None]
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        causes = ", ".join(f"{count} x {reason}" for reason, count in missing.most_common(5))
        if new:
            warnings.warn(f"{self.name}: {missing.total()} of {len(reasons)} answers are missing: {causes}", stacklevel=4)
        part = sum(self._last) / max(1, len(self._last))
        if missing and len(self._last) >= LEAST_ASKED and part > self.settings.failures:
            most = f"takes at most {self.settings.failures:.0%} ({self.own_place}.failures)"
            raise UserError(f"{self.name}: {sum(self._last)} of the last {len(self._last)} answers are missing ({causes}); {most}")

    def dump(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON."""
        return {"counts": dict(self.counts), "last": [int(missing) for missing in self._last]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts ``dump`` back."""
        self.counts = Counter(state["counts"])
        self._last = deque(map(bool, state["last"]), maxlen=LAST_ASKED)


def strict_json(data: bytes) -> Any:
    """The JSON of a response. Errors: Passing where it is none, or holds numbers that JSON does not know."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Passing("no JSON") from error
