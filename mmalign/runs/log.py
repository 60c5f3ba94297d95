"""The log of a run: ``metrics.jsonl``, and whatever trackers are asked for, through accelerate's own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmalign.files import flat, plain, write_json
from mmalign.runs.metrics import read_metrics
from mmalign.runs.pictures import grid
from mmalign.runs.showing import SHOW, TABLES, address
from mmalign.types import UserError

TRACKERS = "trackers.json"
Phase = Literal["train", "eval", "profile"]


class Log:
    """Appends to ``<folder>/metrics.jsonl``, a line at a time and flushed, and sends the same to trackers.

    folder: the run's folder. trackers: names that accelerate knows (``tensorboard``, ``wandb``, ``trackio``, ...), or name ->
    keyword arguments for its start. config: what trackers show as the run's settings. tell: takes a line for the user.

    Where a browser finds the run in trackers is in ``trackers.json``, for its report.

    A tracker whose package is missing, or that fails, costs one line, and the run goes on without it. Continues the clock of a log
    that is already there. Only the main process makes one. Errors: UserError at an unknown name.
    """

    def __init__(
        self,
        folder: Path,
        trackers: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("tensorboard",),
        *,
        config: Mapping[str, Any] | None = None,
        tell: Any = print,
    ) -> None:
        rows, _ = read_metrics(folder / "metrics.jsonl")
        last = rows[-1] if rows else {}
        self._tell = tell
        self._trackers: dict[str, Any] = {}
        self._unshown: set[str] = set()
        for name, options in _known(trackers, tell).items():
            tracker = self._trying(name, partial(_start, folder, name, options, last.get("step", -1) + 1))
            if tracker is not None:
                self._trackers[name] = tracker
        if config and not rows:
            settings = flat(plain(config))
            simple = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in settings.items()}
            self._each(lambda tracker: tracker.store_init_configuration(simple))
        self._begin = time.monotonic() - float(last.get("seconds") or 0.0)
        folder.mkdir(parents=True, exist_ok=True)
        if found := {name: where for name, tracker in self._trackers.items() if (where := address(name, tracker))}:
            write_json(folder / TRACKERS, found)
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (open as long as the log is)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def log(self, step: int, phase: Phase, metrics: Mapping[str, float | Tensor]) -> dict[str, Any]:
        """One line of numbers; a number that is not finite is written as null, and kept from trackers. Returns the line."""
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        row = {"step": int(step), "phase": phase, "seconds": round(time.monotonic() - self._begin, 3), **numbers}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        known = {f"{phase}/{name}": value for name, value in numbers.items() if value is not None}
        self._each(lambda tracker: tracker.log(known, step=int(step)))
        return row

    def show(self, step: int, images: Tensor) -> None:
        """Samples ``[rows, columns, (F,) C, H, W]`` in 0..1 to those trackers that show such; one that fails at it is shown no others."""
        if self._trackers.keys() & SHOW.keys():
            pixels = grid(images)
            self._showing(SHOW, lambda show, tracker: show(tracker, pixels, int(step)))

    def tabulate(self, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Answers to those trackers that show tables, as ``show``. rows: cells in the order of ``columns``."""
        self._showing(TABLES, lambda table, tracker: table(tracker, columns, rows, int(step)))

    def _showing(self, ways: Mapping[str, Callable[..., None]], act: Callable[[Any, Any], None]) -> None:
        for name in [name for name in self._trackers if name in ways and name not in self._unshown]:
            try:
                act(ways[name], self._trackers[name])
            except ConnectionError as error:  # then its numbers would not arrive either
                self._failed(name, error)
            except Exception as error:  # somebody else's code, as in _trying
                self._unshown.add(name)
                why = " ".join(str(error).split())[:200]
                self._tell(f"trackers: {name} takes no samples, going on with numbers ({type(error).__name__}: {why})")

    def close(self) -> None:
        """Ends the trackers and the file; a second call does nothing."""
        self._file.close()
        self._each(lambda tracker: tracker.finish())
        self._trackers = {}

    def _each(self, act: Callable[[Any], Any]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._trying(name, partial(act, tracker))

    def _trying(self, name: str, act: Callable[[], Any]) -> Any:
        """What an act upon a tracker gives; one that fails costs a line, and the tracker is left out from then on."""
        try:
            return act()
        except Exception as error:  # somebody else's code and network: whatever it raises, the run goes on
            self._failed(name, error)
            return None

    def _failed(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        why = " ".join(str(error).split())[:200]
        self._tell(f"trackers: {name} failed, going on without it ({type(error).__name__}: {why})")


def _number(name: str, value: float | Tensor) -> float | int | None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UserError(f"metrics[{name!r}]: got shape {list(value.shape)}, takes one number")
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, int) else float(value)


def _known(wanted: Sequence[str] | Mapping[str, Mapping[str, Any]], tell: Any) -> dict[str, dict[str, Any]]:
    """Trackers whose packages are there, with the keywords of their start. Errors: UserError at an unknown name."""
    settings = {name: dict(wanted[name]) if isinstance(wanted, Mapping) else {} for name in wanted}
    if not settings:
        return {}
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    unknown = [name for name in settings if name not in LOGGER_TYPE_TO_CLASS]
    if unknown:
        raise UserError(f"trackers: got {unknown[0]!r}, takes {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    present = {str(name) for name in get_available_trackers()}
    for name in settings.keys() - present:
        tell(f"trackers: the package of {name!r} is not installed; going on without it")
    PartialState()  # accelerate's trackers log through it
    return {name: options for name, options in settings.items() if name in present}


def _start(folder: Path, name: str, options: Mapping[str, Any], next_step: int) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    # what each names a run: tensorboard writes to <folder>/tensorboard, wandb and trackio take a project and a name
    own = {"name": folder.name}
    defaults: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": next_step}, "wandb": own, "trackio": own}
    tracker_class = LOGGER_TYPE_TO_CLASS[name]
    title = {"tensorboard": "tensorboard", "wandb": "mmalign", "trackio": "mmalign"}.get(name, folder.name)
    arguments = (title, str(folder)) if tracker_class.requires_logging_directory else (title,)
    tracker = tracker_class(*arguments, **{**defaults.get(name, {}), **options})
    tracker.start()
    return tracker
