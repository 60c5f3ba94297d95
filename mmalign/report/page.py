"""The page itself: pictures inlined, figures drawn, ``page.html`` filled in. Everything that a user wrote is escaped there."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.report import fronts, pixels, rounds
from mmalign.report.answers import Case, cases, count
from mmalign.report.displacement import displaced
from mmalign.report.displacement import in_words as displacement_in_words
from mmalign.report.figures import figures, scores_only, summary_rows
from mmalign.report.hallucination import columns, standings
from mmalign.report.plots import short
from mmalign.report.profile import costs, figure
from mmalign.report.read import RunData
from mmalign.report.templates import template
from mmalign.report.verdict import PERCENT, describe, sentence, silent, state
from mmalign.runs.overoptimisation import Finding, curve, fell_silent, overoptimised
from mmalign.runs.pixels import in_words, shifts

LARGEST = 1400  # pixels; a larger grid is scaled down and packed as WebP, so that a page of many steps stays light
SMALL_CELL = 64  # pixels; smaller pictures are enlarged as squares instead of being blurred


@dataclass(frozen=True)
class Picture:
    """An image as a ``data:`` address, with its size in pixels."""

    step: int | None
    address: str
    width: int
    height: int
    readout: str = ""


def render(run: RunData) -> str:
    """The whole page as one string of HTML."""
    from markupsafe import Markup

    findings = overoptimised(run.evals, rewards=run.rewards, judges=run.judges)
    silence, moved, displacement = _silence(run), shifts(run.evals), displaced(run.train)
    notes = list(run.notes)
    drawn = [picture(path, step, readout(run, step), notes=notes) for step, path in run.frames]
    frames = [one for one in drawn if one is not None]
    rows, across = _shape(run, frames)
    questions = cases(run, notes)
    drawings = figures(run) + [drawing for drawing in (figure(run),) if drawing is not None]
    drawings = [*figures(run)[:2], *fronts.figures(run), *rounds.figures(run)] if run.unit == "round" else drawings
    return template("page.html").render(
        name=run.path.resolve().name,
        verdict=in_a_sentence(run),
        state=state(run),
        trackers=run.trackers,
        findings=[describe(finding, run.unit) for finding in findings],
        moved=[in_words(shift) for shift in moved],
        since=min((shift.step for shift in moved), default=0),
        pixels=pixels.table(run),
        silence=None if silence is None else silent(silence),
        displacement="" if displacement is None else displacement_in_words(displacement),
        cases=questions,
        marked=any(answer.known for case in questions for answer in case.answers),
        credited=any(piece.nats for case in questions for answer in case.answers for piece in answer.pieces),
        steps=_steps(frames, questions),
        readouts={step: readout(run, step) for step in _steps(frames, questions)},
        more=count(run) - len(questions),
        frames=frames,
        board=_board(run, frames, rows, across),
        real=None if run.real is None else picture(run.real, None, notes=notes),
        prompts=run.prompts if len(run.prompts) == rows else [],
        rows=rows,
        long_prompts=any(len(prompt) > 12 for prompt in run.prompts),
        columns=across,
        pixelated=bool(frames) and frames[0].width / across < SMALL_CELL,
        no_frames=_no_frames(run),
        sizes=run.sizes,
        figures=[(figure, Markup(figure.svg)) for figure in drawings if figure.svg],
        undrawn=[figure.note for figure in drawings if not figure.svg],
        summary=summary_rows(run.summary),
        costs=costs(run),
        made=rounds.made(run),
        benchmarks=[
            (name, [(key, f"{short(v)} ({short(a)} to {short(b)})") for key, (v, a, b) in rows.items()]) for name, rows in run.benchmarks
        ],
        config=run.config_text,
        versions=[(name, "none" if version is None else str(version)) for name, version in run.versions.items()],
        notes=notes,
    )


def in_a_sentence(run: RunData) -> str:
    """What a run came to, as the page says it first."""
    return sentence(run, overoptimised(run.evals, rewards=run.rewards, judges=run.judges), _silence(run), shifts(run.evals))


def _silence(run: RunData) -> Finding | None:
    points = standings(run)
    return fell_silent([p.invented for p in points], [p.recalled for p in points]) if points else None


def _board(run: RunData, frames: Sequence[Picture], rows: int, across: int) -> dict[str, Any]:
    """What the page knows of the cells of its grids, as JSON: under each sample stands its first score, and all of them where it is opened.

    The first is a judge's, or else a reward's.
    """
    width, height = (frames[0].width / across, frames[0].height / rows) if frames else (1.0, 1.0)
    gap = max(min(1.0, height / 2), height // 33) if frames else 0.0  # of `runs.pictures.grid`
    shown = {step: tables for step, tables in run.scores.items() if tables and step in {frame.step for frame in frames}}
    order = dict.fromkeys([*run.judges, *run.rewards, *(name for tables in shown.values() for name in tables)])
    texts = {
        step: {name: [["" if cell is None else short(cell) for cell in row] for row in tables[name]] for name in order if name in tables}
        for step, tables in shown.items()
    }
    first = next((name for name in order if any(name in tables for tables in shown.values())), "")
    words = run.prompts if len(run.prompts) == rows else []
    sizes = {"rows": rows, "columns": across, "width": width, "height": height, "gap": gap}
    return {**sizes, "prompts": words, "seeds": [str(seed) for seed in run.seeds], "scores": texts, "names": list(order), "first": first}


def _steps(frames: Sequence[Picture], questions: Sequence[Case]) -> list[int]:
    """What the slider goes through: the steps of the grids, or else those of the answers."""
    steps = {frame.step for frame in frames if frame.step is not None}
    return sorted(steps or {answer.step for case in questions for answer in case.answers})


def _no_frames(run: RunData) -> str:
    if run.videos:
        return f"This run's samples are videos: {run.videos} files in its samples folder, not shown here."
    if scores_only(run):
        return "A reward model makes no outputs: what it was evaluated on are records."
    return (
        "No sample grid has been written yet." if run.summary.get("status", "running") == "running" else "This run wrote no sample grids."
    )


def _shape(run: RunData, frames: list[Picture]) -> tuple[int, int]:
    """(rows, columns) of the grids; without prompts.json the picture counts as one cell."""
    if not frames or not run.prompts:
        return 1, max(1, len(run.seeds))
    rows = len(run.prompts)
    guessed = round(frames[0].width / (frames[0].height / rows))  # square cells
    return rows, len(run.seeds) or max(1, guessed)


def readout(run: RunData, step: int) -> str:
    """The numbers of the evaluation at a step: ``proxy 0.81 · gold 0.78 · spread 95 %``."""
    row = next((row for row in run.evals if row["step"] == step), None)
    if row is None:
        return ""
    names = [*(columns(run) or ()), *run.rewards, *run.judges]
    words = [f"{name} {short(points[0].value)}" for name in dict.fromkeys(names) if (points := curve([row], name))]
    ratio = curve([row], "spread_ratio")
    return " · ".join(words + [f"spread {100 * point.value:.0f}{PERCENT}" for point in ratio])


def picture(path: Path, step: int | None, readout: str = "", *, notes: list[str]) -> Picture | None:
    """A file as a picture of the page; None for a damaged one, which ``notes`` is told."""
    from PIL import Image, ImageSequence

    try:
        data, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width, height = image.size
            if max(image.size) > LARGEST:
                scale = LARGEST / max(image.size)
                width, height = max(1, round(width * scale)), max(1, round(height * scale))
                frames = [frame.resize((width, height), Image.Resampling.LANCZOS) for frame in ImageSequence.Iterator(image)]
                moving = {"save_all": True, "append_images": frames[1:], "duration": image.info.get("duration", 0)} if frames[1:] else {}
                buffer = io.BytesIO()
                frames[0].save(buffer, format="WEBP", quality=85, **moving)
                data, kind = buffer.getvalue(), "webp"
    except (OSError, SyntaxError, ValueError):  # what Pillow raises at a damaged file
        notes.append(f"{path.name} could not be read")
        return None
    return Picture(step, f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", width, height, readout)
