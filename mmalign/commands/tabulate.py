"""Evaluations beside each other: a row for each run, reward or judge, rank correlations, how numbers drifted, and what training cost."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from mmalign.commands._tax import LENGTH, Change, changes, lengths, of_suites, read_results
from mmalign.evaluation.best_of import best_of_n_kl
from mmalign.evaluation.drift import Drift, drift
from mmalign.files import finite, write_bytes, write_json, write_text
from mmalign.report.read import RunData, read
from mmalign.runs.overoptimisation import curve
from mmalign.types import UserError

LEAST = 3  # rows that a correlation needs
DRAWN = 9  # pairs of columns that are drawn
MODEL = " of its reward model"
CURVE = re.compile(r"gold/n=(\d+)")


@dataclass(frozen=True)
class Correlation:
    """Of two columns over ``rows`` rows: Spearman's rho and Kendall's tau, each with the p-value of none."""

    first: str
    second: str
    rows: int
    spearman: float
    spearman_p: float
    kendall: float
    kendall_p: float


@dataclass(frozen=True)
class Tabulated:
    """rows: name -> column -> number. columns: in their order. correlations: of every two columns. path: the folder of what was written.

    drifts: run -> reward or judge -> how it moved over the run's evaluations. changes: run -> its numbers before training and after it,
    those of its own judges first.
    """

    rows: Mapping[str, Mapping[str, float]]
    columns: Sequence[str]
    correlations: Sequence[Correlation]
    path: Path
    drifts: Mapping[str, Mapping[str, Drift]] = field(default_factory=dict)
    changes: Mapping[str, Sequence[Change]] = field(default_factory=dict)

    def changed(self) -> tuple[list[str], list[list[str]]]:
        """(columns, rows): what training gained and lost, a row for each run; nothing where no number has a before and an after."""
        every = [one for its in self.changes.values() for one in its]
        columns = list(dict.fromkeys([one.name for one in every if one.own] + [one.name for one in every]))
        cells = {run: {one.name: one.shown() for one in its} for run, its in self.changes.items()}
        return columns, [[run, *(its.get(column, "–") for column in columns)] for run, its in cells.items()]

    def table(self) -> str:
        """As Markdown: numbers, and then correlations."""
        lines = [f"| | {' | '.join(self.columns)} |", f"|---|{'---:|' * len(self.columns)}"]
        lines += [f"| {name} | {' | '.join(_shown(row.get(column)) for column in self.columns)} |" for name, row in self.rows.items()]
        lines += ["", "| over rows | | rows | Spearman | p | Kendall | p |", "|---|---|---:|---:|---:|---:|---:|"]
        for one in self.correlations:
            numbers = (one.spearman, one.spearman_p, one.kendall, one.kendall_p)
            lines.append(f"| {one.first} | {one.second} | {one.rows} | {' | '.join(map(_shown, numbers))} |")
        if self.drifts:
            lines += ["", "| over evaluations | | first | last | M | SE of M | tau |", "|---|---|---:|---:|---:|---:|---:|"]
        for run, moved in self.drifts.items():
            lines += [
                f"| {run} | {name} | {' | '.join(map(_shown, one[:4]))} | {one.time:g} |".replace("nan |", "– |")
                for name, one in moved.items()
            ]
        head, rows = self.changed()
        if rows:
            lines += ["", f"| after training - before | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join(lines) + "\n"


def tabulate(
    folders: Sequence[str | Path], *, out: str | Path, numbers: Sequence[str] | None = None, inside: str | None = None,
    outside: str | None = None, own: Sequence[str] | None = None, less: Sequence[str] = (),
) -> Tabulated:  # fmt: skip
    """A table of the evaluations of runs, with rank correlations of its columns, written as ``table.md``, ``.json`` and ``.png``.

    Args:
        folders: runs, and folders that ``mmalign eval`` wrote (of rewards, judges, models). Of a run there are the rewards and judges of
            its last evaluation, what ``mmalign eval`` measured of it, and, where it was trained on a reward that another run trained
            (``{use: trained, run: ...}``), what was measured of that: accuracy of a reward model x reward x judge, over runs.
        out: a folder.
        numbers: columns that are shown, as ``SUITE: NUMBER``; by default the first number of each suite, and all of a run's own.
        inside, outside: suites in and out of the distribution that rewards were trained on; ``drop`` is the first number of the one minus
            that of the other, by which implicit and explicit rewards are told apart.
        own: columns by which a run was to become better, such as ``judge green``; by default the rewards that it was trained on, and, where
            it was trained on records, its first judge. less: columns of which less is better.

    What alignment cost: for each run, by how much its own numbers and all others that are shown changed with training, and whether that is
    beyond two standard errors: ``gained``, ``lost``, ``no difference``, or ``not known``. Rewards and judges: from the first evaluation to
    the last (or the best, where the run kept it); suites: from ``mmalign eval RUN --suite S --set ref`` to the same without ``--set``.
    Where both answered in words there is a column of the ratio of lengths, in characters, mean over mean (``evaluation.length_ratio``).

    Where ``best_of_samples`` was measured the picture draws gold against the KL of best-of-n, a curve for each row.

    Paper: Lambert, Calandra, "The Alignment Ceiling" (2023), https://arxiv.org/abs/2311.00168: that these correlate is not to be taken for
    granted; Lin et al., "On the Limited Generalization Capability of the Implicit Reward Model Induced by Direct Preference Optimization"
    (2024), https://arxiv.org/abs/2409.03650: the drop. The drift is that of https://arxiv.org/abs/2510.26707. What alignment costs and the
    ratio of lengths: Hein et al. (2024), https://arxiv.org/abs/2410.07025, recalled.

    Errors: UserError for a folder that is neither, one that holds nothing measured, and names that no column has.
    """
    rows: dict[str, dict[str, float]] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    firsts: dict[str, str] = {}
    drifts: dict[str, dict[str, Drift]] = {}
    moves: dict[str, list[Change]] = {}
    for folder in map(Path, folders):
        name, row, moved, changed = _row(folder, firsts, curves)
        rows[name] = {**rows.get(name, {}), **row}
        if changed:
            moves[name] = changed
        if moved:
            drifts[name] = moved
    if not rows:
        raise UserError("table: got no folder, takes runs, and folders that mmalign eval wrote")
    measured = list(dict.fromkeys(column for row in rows.values() for column in row))
    columns = _columns(measured, numbers, list(firsts.values()))
    if inside is not None or outside is not None:
        ends = [firsts.get(suite or "") for suite in (inside, outside)]
        if None in ends:
            raise UserError(f"table: got inside={inside!r}, outside={outside!r}, takes two suites that were measured: {', '.join(firsts)}")
        for row in rows.values():
            row["drop"] = row.get(str(ends[0]), math.nan) - row.get(str(ends[1]), math.nan)
        columns.append("drop")
    correlations = [found for pair in combinations(columns, 2) if (found := _correlated(rows, *pair)) is not None]
    made = Tabulated(rows, columns, correlations, Path(out), drifts, _judged(moves, measured, columns, own, less))
    _write(made, curves)
    return made


def _row(
    folder: Path, firsts: dict[str, str], curves: dict[str, list[tuple[float, float]]]
) -> tuple[str, dict[str, float], dict[str, Drift], list[Change]]:
    """What a folder is called, its numbers, and how a run's moved and changed. firsts: suite -> its first number, which this adds to;
    curves: name -> (KL, gold)."""
    if (folder / "results.json").is_file():
        return (*_evaluated(folder / "results.json", firsts, curves), {}, [])
    if not (folder / "config.yaml").is_file():
        raise UserError(f"table: {folder} is neither a run (config.yaml) nor a folder of mmalign eval (results.json)")
    run, row, name = read(folder), dict[str, float](), folder.resolve().name
    after, before = of_suites(_results(folder))
    for file in after:
        row |= _evaluated(file, firsts, curves)[1]
    for model in [str(node["run"]) for node in _nodes(run.config.get("rewards")) if node.get("use") == "trained" and "run" in node]:
        of_model: dict[str, str] = {}
        for file in of_suites(_results(Path(model)))[0]:
            row |= {f"{column}{MODEL}": value for column, value in _evaluated(file, of_model, {})[1].items()}
        for suite, first in of_model.items():
            firsts.setdefault(f"{suite}{MODEL}", f"{first}{MODEL}")
    last = run.evals[-1] if run.evals else {}
    row |= {f"reward {key}": float(last[key]) for key in run.rewards if isinstance(last.get(key), (int, float))}
    row |= {f"judge {key}": float(last[key]) for key in run.judges if isinstance(last.get(key), (int, float))}
    row |= {column: found["length_ratio"].value for column, found in lengths(run, after, before).items()}
    if not row:
        raise UserError(f"table: {folder} holds nothing measured: no evaluation, no reward and no judge in its log")
    return name, row, _drifts(run), changes(run, after, before)


def _judged(
    moves: Mapping[str, Sequence[Change]], measured: Sequence[str], columns: Sequence[str], own: Sequence[str] | None, less: Sequence[str]
) -> dict[str, list[Change]]:
    """The changes of own numbers and of the columns that are shown, own first. Errors: UserError for columns that were not measured."""
    for key, names in (("own", own or ()), ("less", less)):
        if strange := next((name for name in names if name not in measured), None):
            raise UserError(f"table.{key}: got {strange!r}, takes {', '.join(measured[:40])}")
    kept = {}
    for run, its in moves.items():
        said = [one._replace(own=one.own if own is None else one.name in own, less=one.name in less) for one in its]
        shown = [one for one in said if one.own or one.name in columns]
        kept[run] = sorted(shown, key=lambda one: not one.own)
    return kept


def _drifts(run: RunData) -> dict[str, Drift]:
    """Of the rewards and judges that were evaluated twice or more."""
    moved = {}
    for name in [*run.rewards, *run.judges]:
        points = curve(run.evals, name)
        if len(points) > 1:
            errors = [math.nan if point.error is None else point.error for point in points]
            moved[name] = drift([point.step for point in points], [point.value for point in points], errors)
    return moved


def _results(folder: Path) -> list[Path]:
    return sorted((folder / "evaluations").glob("*/results.json"))


def _evaluated(file: Path, firsts: dict[str, str], curves: dict[str, list[tuple[float, float]]]) -> tuple[str, dict[str, float]]:
    results = read_results(file)
    suite, values = results["suite"], {str(name): value["value"] for name, value in results["values"].items()}
    row = {f"{suite}: {name}": float(value) for name, value in values.items() if isinstance(value, (int, float))}
    known = [name for name in [*results.get("headline", ()), *values] if f"{suite}: {name}" in row]
    if known:
        firsts.setdefault(suite, f"{suite}: {known[0]}")
    who = str(results.get("who") or file.parent.name)
    points = [
        (best_of_n_kl(int(match[1])), float(value))
        for name, value in values.items()
        if (match := CURVE.fullmatch(name)) and value is not None
    ]
    if points:
        curves[who] = sorted(points)
    return who, row


def _nodes(value: Any) -> list[Mapping[str, Any]]:
    """Every mapping inside of a node, itself included."""
    if isinstance(value, Mapping):
        return [value, *(node for part in value.values() for node in _nodes(part))]
    return [node for part in value for node in _nodes(part)] if isinstance(value, list) else []


def _columns(measured: Sequence[str], numbers: Sequence[str] | None, firsts: Sequence[str]) -> list[str]:
    if numbers is None:
        return [column for column in measured if column in firsts or column.startswith(("reward ", "judge ")) or column.endswith(LENGTH)]
    if strange := next((name for name in numbers if name not in measured), None):
        raise UserError(f"table.numbers: got {strange!r}, takes {', '.join(measured[:40])}")
    return list(numbers)


def _correlated(rows: Mapping[str, Mapping[str, float]], first: str, second: str) -> Correlation | None:
    """Of the rows that have both columns; None for fewer than three, and for a column that says the same of all."""
    from scipy.stats import kendalltau, spearmanr

    pairs = [(row[first], row[second]) for row in rows.values() if not math.isnan(row.get(first, math.nan) + row.get(second, math.nan))]
    if len(pairs) < LEAST or any(len({pair[side] for pair in pairs}) < 2 for side in (0, 1)):
        return None
    rho, tau = spearmanr(*zip(*pairs, strict=True)), kendalltau(*zip(*pairs, strict=True))
    return Correlation(first, second, len(pairs), float(rho[0]), float(rho[1]), float(tau[0]), float(tau[1]))


def _shown(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _write(made: Tabulated, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    node = {
        "rows": {name: dict(row) for name, row in made.rows.items()}, "columns": list(made.columns),
        "correlations": [vars(one) for one in made.correlations],
        "drifts": {run: {name: one._asdict() for name, one in moved.items()} for run, moved in made.drifts.items()},
        "changes": {run: [{**one._asdict(), "verdict": one.verdict} for one in its] for run, its in made.changes.items()},
        "curves": {name: list(map(list, curve)) for name, curve in curves.items()},
    }  # fmt: skip
    write_text(made.path / "table.md", made.table())
    write_json(made.path / "table.json", finite(node))
    if curves or made.correlations:
        write_bytes(made.path / "table.png", _picture(made, curves))


def _picture(made: Tabulated, curves: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """A panel for each pair of columns that correlate at all, and one of gold against KL."""
    from matplotlib.figure import Figure

    pairs = sorted(made.correlations, key=lambda one: -abs(one.spearman))[:DRAWN]
    panels = len(pairs) + bool(curves)
    wide = min(panels, 3)
    figure = Figure(figsize=(3.6 * wide, 3.2 * -(-panels // wide)), layout="constrained")
    axes = figure.subplots(-(-panels // wide), wide, squeeze=False).ravel().tolist()
    if curves:
        for name, curve in curves.items():
            axes[0].plot(*zip(*curve, strict=True), marker=".", label=name)
        axes[0].set(xlabel="KL of best-of-n, nats at most", ylabel="gold")
        axes[0].legend(fontsize=7, frameon=False)
    for panel, one in zip(axes[bool(curves) :], pairs, strict=False):
        points = [(row[one.first], row[one.second], name) for name, row in made.rows.items() if one.first in row and one.second in row]
        panel.plot([point[0] for point in points], [point[1] for point in points], "o", markersize=4)
        for x, y, name in points:
            panel.annotate(name, (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
        panel.set_xlabel(one.first, fontsize=7)
        panel.set_ylabel(one.second, fontsize=7)
        panel.set_title(f"Spearman {one.spearman:.2f} (p {one.spearman_p:.2f})", fontsize=8)
    for panel in axes[panels:]:
        panel.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
