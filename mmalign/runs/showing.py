"""Samples in trackers: a picture of the grid, or all of its frames where it is one of videos; answers in words, as tables; and where
a browser finds the run there."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from mmalign.runs.pictures import gif, opaque

WEB = re.compile(r"https?://[^\s\"'<>]+\Z")
LOCAL = re.compile(r"https?://(127\.|localhost\b|0\.0\.0\.0|\[)")
TAG, ANSWERS = "eval/samples", "eval/answers"


def tensorboard(tracker: Any, pixels: Tensor, step: int) -> None:
    """pixels: ``[4, H, W]`` uint8; a GIF of ``[F, 4, H, W]``, which TensorBoard shows moving."""
    if pixels.ndim == 3:
        tracker.writer.add_image(TAG, opaque(pixels), global_step=step)
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    film = Summary.Image(height=pixels.shape[2], width=pixels.shape[3], colorspace=3, encoded_image_string=gif(pixels))
    tracker.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=TAG, image=film)]), step)


def wandb(tracker: Any, pixels: Tensor, step: int) -> None:
    """As ``tensorboard``."""
    import wandb as package

    if pixels.ndim == 3:
        tracker.log_images({TAG: [opaque(pixels).permute(1, 2, 0).numpy()]}, step=step)
    else:
        tracker.log({TAG: package.Video(io.BytesIO(gif(pixels)), format="gif")}, step=step)


def trackio(tracker: Any, pixels: Tensor, step: int) -> None:
    """As ``tensorboard``."""
    import trackio as package

    if pixels.ndim == 3:
        shown = package.Image(opaque(pixels).permute(1, 2, 0).numpy())
    else:
        shown = package.Video(opaque(pixels).numpy(), fps=4, format="gif")
    tracker.log({TAG: shown}, step=step)


def mlflow(tracker: Any, pixels: Tensor, step: int) -> None:
    """As ``tensorboard``; of a video the file, because MLflow shows pictures alone."""
    import mlflow as package

    run = tracker.tracker.info.run_id
    if pixels.ndim == 3:
        package.MlflowClient().log_image(run, opaque(pixels).permute(1, 2, 0).numpy(), key=TAG, step=step)
        return
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / f"step_{step:06d}.gif"
        film.write_bytes(gif(pixels))
        package.MlflowClient().log_artifact(run, str(film), TAG)


def tensorboard_table(tracker: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    """rows: cells in the order of ``columns``, words or numbers."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(map(_cell, row)) for row in rows)]
    tracker.writer.add_text(ANSWERS, "\n".join(f"| {line} |" for line in lines), global_step=step)


def wandb_table(tracker: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    """As ``tensorboard_table``."""
    tracker.log_table(ANSWERS, columns=list(columns), data=[list(row) for row in rows], step=step)


def trackio_table(tracker: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    """As ``tensorboard_table``."""
    import pandas
    import trackio as package

    tracker.log({ANSWERS: package.Table(dataframe=pandas.DataFrame(list(rows), columns=list(columns)))}, step=step)


def mlflow_table(tracker: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    """As ``tensorboard_table``."""
    import mlflow as package

    cells = {name: [row[place] for row in rows] for place, name in enumerate(columns)}
    package.MlflowClient().log_table(tracker.tracker.info.run_id, cells, f"{ANSWERS}/step_{step:06d}.json")


def _cell(value: Any) -> str:
    """A cell of Markdown's: a bar would end it, and so would a line."""
    words = f"{value:.3f}" if isinstance(value, float) else str(value)
    return words.replace("|", "\\|").replace("\n", "<br>")


def _own_address(tracker: Any) -> Any:
    """W&B's, Comet's and SwanLab's run knows it; None, or an error, where it is offline."""
    return tracker.tracker.url


def _clearml_address(tracker: Any) -> Any:
    return tracker.tracker.get_output_log_web_page()


def _mlflow_address(tracker: Any) -> Any:
    """As the pages of MLflow's own server are called; a file or a database has none."""
    import mlflow as package

    run = tracker.tracker.info
    return f"{package.get_tracking_uri().rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


def _trackio_address(tracker: Any) -> Any:
    """Of a server that stands, or a Space of the hub (``owner/name``); the one that trackio starts on this machine ends with the run."""
    run = tracker.tracker
    place = str(run.url or "")
    if "://" not in place:
        place = f"https://huggingface.co/spaces/{place}" if "/" in place else ""
    return f"{place}?project={quote(run.project)}" if place and not LOCAL.match(place) else None


SHOW = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}
"""Trackers that are shown samples; others hear of numbers alone."""
TABLES = {"tensorboard": tensorboard_table, "wandb": wandb_table, "trackio": trackio_table, "mlflow": mlflow_table}
"""Trackers that are given answers."""
ADDRESSES: dict[str, Callable[[Any], Any]] = {
    "wandb": _own_address, "comet_ml": _own_address, "swanlab": _own_address, "clearml": _clearml_address, "mlflow": _mlflow_address,
    "trackio": _trackio_address,
}  # fmt: skip
"""Trackers whose page of a run has an address."""


def address(name: str, tracker: Any) -> str:
    """Where a browser finds this run in a tracker; '' where it does nowhere."""
    if name not in ADDRESSES:
        return ""
    try:
        found = str(ADDRESSES[name](tracker) or "")
    except Exception:  # somebody else's code: a run without a link is a run
        return ""
    return found if WEB.match(found) else ""
