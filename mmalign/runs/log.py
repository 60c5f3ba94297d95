"""The log of a run: ``metrics.jsonl``, and whatever trackers are asked for, through accelerate's own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmalign.files import flat, plain
from mmalign.runs.metrics import read_metrics
from mmalign.types import UserError

Phase = Literal["train", "eval"]


class Log:
    """Appends to ``<folder>/metrics.jsonl``, a line at a time and flushed, and sends the same to trackers.

    folder: the run's folder. trackers: names that accelerate knows (``tensorboard``, ``wandb``, ``trackio``, ...), or name ->
    keyword arguments for its start. config: what trackers show as the run's settings. tell: takes a line for the user.

    A tracker whose package is missing costs one line, and the run goes on. Raises UserError at an unknown name.
    Continues the clock of a log that is already there. Only the main process makes one.
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
        self._trackers = _start(folder, trackers, config=config, next_step=last.get("step", -1) + 1, resumed=bool(rows), tell=tell)
        self._begin = time.monotonic() - float(last.get("seconds") or 0.0)
        folder.mkdir(parents=True, exist_ok=True)
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
        for tracker in self._trackers:
            tracker.log(known, step=int(step))
        return row

    def close(self) -> None:
        """Ends the trackers and the file; a second call does nothing."""
        trackers, self._trackers = self._trackers, []
        self._file.close()
        for tracker in trackers:
            tracker.finish()


def _number(name: str, value: float | Tensor) -> float | int | None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UserError(f"metrics[{name!r}]: got shape {list(value.shape)}, takes one number")
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, int) else float(value)


def _start(
    folder: Path,
    wanted: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    config: Mapping[str, Any] | None,
    next_step: int,
    resumed: bool,
    tell: Any,
) -> list[Any]:
    asked = {name: dict(wanted[name]) if isinstance(wanted, Mapping) else {} for name in wanted}
    if not asked:
        return []
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    unknown = [name for name in asked if name not in LOGGER_TYPE_TO_CLASS]
    if unknown:
        raise UserError(f"trackers: got {unknown[0]!r}, takes {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    present = {str(name) for name in get_available_trackers()}
    for name in set(asked) - present:
        tell(f"trackers: the package of {name!r} is not installed; going on without it")
    PartialState()  # accelerate's trackers log through it
    # what each names a run: tensorboard writes to <folder>/tensorboard, wandb and trackio take a project and a name
    named = {"name": folder.name}
    defaults: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": next_step}, "wandb": named, "trackio": named}
    started = []
    for name in (name for name in asked if name in present):
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        options = {**defaults.get(name, {}), **asked[name]}
        title = {"tensorboard": "tensorboard", "wandb": "mmalign", "trackio": "mmalign"}.get(name, folder.name)
        arguments = (title, str(folder)) if tracker_class.requires_logging_directory else (title,)
        tracker = tracker_class(*arguments, **options)
        tracker.start()
        if config and not resumed:
            settings = flat(plain(config))
            simple = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in settings.items()}
            tracker.store_init_configuration(simple)
        started.append(tracker)
    return started
