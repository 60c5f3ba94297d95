"""The figures of a run's page: which columns each one shows, and what it says where there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.report import displacement, fronts, hallucination, pixels, reliability, tokens
from mmalign.report.plots import Figure, Plot, Rule, Series, draw, short, thin
from mmalign.report.read import RunData
from mmalign.runs.overoptimisation import SPREAD_LINE, Point, curve

HELD_OUT = "held_out/"
"""How the names of numbers begin that evaluations have of records that the run is not trained on."""


def figures(run: RunData) -> list[Figure]:
    """All figures in their order on the page, those without a drawing too: the page says why there is none.

    Of answers about images and of given records where there are any; of rollouts where the run makes some.
    """
    from_records = any("known" in row for row in run.train)  # which offline runs log
    varied = [] if run.answers and not spread(run).svg else [spread(run)]
    rollouts = [] if from_records else [training_reward(run), ratio(run), clipping(run)]
    preferences = [loss(run), margin(run), accuracy(run), log_ratios(run)] if from_records else []
    varied += [drawing for drawing in (pixels.figure(run),) if drawing is not None]
    preferences += [drawing for drawing in (reliability.figure(run),) if drawing is not None]
    sampled = [] if scores_only(run) else [rewards_and_judges(run), against_kl(run), *fronts.figures(run)]
    return [
        *hallucination.figures(run),
        *sampled,
        *preferences,
        *([] if scores_only(run) else varied),
        *tokens.figures(run),
        *displacement.figures(run),
        *rollouts,
    ]


def scores_only(run: RunData) -> bool:
    """Whether what is trained makes no outputs (a reward model), so that held-out records are all that is evaluated."""
    return not (run.frames or run.answers or run.rewards or run.judges) and any(
        name.startswith(HELD_OUT) for row in run.evals for name in row
    )


def rewards_and_judges(run: RunData) -> Figure:
    """Trained rewards solid, judges dashed, over steps, with bands of one standard error where they were logged."""
    title = "Rewards and judges"
    columns = [(name, False) for name in run.rewards] + [(name, True) for name in run.judges]
    evaluated = [(name, dashed, curve(run.evals, name)) for name, dashed in columns]
    curves = [one for one in evaluated if one[2]]
    missing = ", ".join(name for name, _, points in evaluated if not points)
    if not curves:
        return Figure(title, f"No evaluation has a number of {missing}." if missing else "No reward and no judge has been evaluated.")
    scaled = _scales_differ([points for _, _, points in curves])
    series = []
    for index, (name, dashed, points) in enumerate(curves):
        origin, unit = _scale(points) if scaled else (0.0, 1.0)
        line = [(float(p.step), (p.value - origin) / unit) for p in points]
        bands = [(p.error or 0.0) / unit for p in points]
        words = [f"{short(p.value)} at {run.unit} {p.step}" for p in points]
        series.append(Series(name, line, dashed=dashed, marks=True, bands=bands, words=words, colour=index))
    note = (
        "Solid: what it was trained on. Dashed: judges it never saw."
        if run.judges
        else "No judge was configured: these are trained rewards only."
    )
    if scaled:
        note += " Their scales differ, so each is drawn from its start (0) in units of its largest change."
    if any(any(s.bands) for s in series):
        note += " Bands: one standard error."
    if missing:
        note += f" No evaluation has a number of {missing}."
    return _figure(title, note, series, x_word=run.unit)


def against_kl(run: RunData) -> Figure:
    """The path of a run in the plane of KL and reward: what each nat away from the reference bought."""
    title = "Reward against KL"
    evals = [row for row in run.evals if _finite(row.get("kl"))]
    columns = [(name, False) for name in run.rewards] + [(name, True) for name in run.judges]
    series = []
    if len(evals) > 1 and columns:
        for index, (name, dashed) in enumerate(columns):
            rows = [row for row in evals if _finite(row.get(name))]
            line = [(float(row["kl"]), float(row[name])) for row in rows]
            words = [f"{short(row[name])} at {short(row['kl'])} nats, {run.unit} {row['step']}" for row in rows]
            if line:
                series.append(Series(name, line, dashed=dashed, marks=True, words=words, colour=index))
        note = "Each mark is an evaluation; the line joins them in the order of training."
        note += f" Of a run {run.sizes}; KL is of samples as they are trained on." if run.sizes else ""
        note += _in_numbers(run)
    else:
        path = [(float(row["kl"]), float(row["reward"])) for row in run.train if _finite(row.get("kl")) and _finite(row.get("reward"))]
        series = [Series("reward (training)", thin(path, 40), marks=False)] if len(path) > 1 else []
        note = "From training steps, because KL was not evaluated often enough."
    if not series:
        return Figure(title, "No KL was logged: the run kept no reference, or has just begun.")
    return _figure(title, note, series, x_word="KL to the reference, nats per trajectory", steps=False)


def _in_numbers(run: RunData) -> str:
    """What the last measured KL is in the units of public code for images, which divides by the numbers of a latent; "" for tokens."""
    size = run.summary.get("event_size")
    rows = [row for row in run.train if _finite(row.get("kl")) and _finite(row.get("kl_step"))]
    if not rows or not isinstance(size, int) or size < 2:
        return ""
    kl, step = float(rows[-1]["kl"]), float(rows[-1]["kl_step"])
    of = f"{size:,.0f} numbers of a latent"
    return f" In step {rows[-1]['step']} {short(kl)} nats a trajectory, {short(step)} a step, {step / size:.3g} for each of the {of}."


def spread(run: RunData) -> Figure:
    """Within-class spread of the samples, as a share of real data's where that is known."""
    title = "Within-class spread"
    name = "spread_ratio" if curve(run.evals, "spread_ratio") else "spread"
    points = curve(run.evals, name)
    if not points:
        return Figure(title, "Spread was not evaluated.")
    known = name == "spread_ratio"
    rules = (Rule(1.0, "real data"), Rule(SPREAD_LINE, f"{SPREAD_LINE:.0%} of it".replace("%", " %"))) if known else ()
    note = (
        "Relative to real data; below the lower line, diversity is being spent."
        if known
        else "Real data's spread is not known to this run."
    )
    line = Series(
        "spread",
        [(float(p.step), p.value) for p in points],
        marks=True,
        words=_words(points),
        bands=[p.error or 0.0 for p in points],
        colour=2,
    )
    return _figure(title, note, [line], x_word="step", rules=rules)


def training_reward(run: RunData) -> Figure:
    """Reward of the training rollouts, and each reward apart where there are several."""
    parts = sorted({name for row in run.train for name in row if name.startswith("reward/")})
    together = len(parts) > 1 and not _scales_differ([curve(run.train, name) for name in ("reward", *parts)])
    names = ["reward", *(parts if together else [])]
    return _train_figure(run, "Training reward", names, "Mean over each rollout.", "No training step has been logged.")


def ratio(run: RunData) -> Figure:
    """Importance ratio: its mean, and the largest of each step."""
    note = "New over old probability of each step taken; both are 1 before the first update of a rollout."
    missing = "No importance ratio was logged: this method has none, or training has not begun."
    return _train_figure(run, "Importance ratio", ["ratio_mean", "ratio_max"], note, missing, rules=(Rule(1.0, ""),))


def clipping(run: RunData) -> Figure:
    """Share of cells that the clip silenced."""
    note = "Share of steps whose gradient the clip removed."
    missing = "No clip fraction was logged: this method does not clip, or training has not begun."
    return _train_figure(run, "Clip fraction", ["clip_fraction"], note, missing)


def loss(run: RunData) -> Figure:
    """The loss of each update."""
    return _train_figure(run, "Loss", ["loss"], "Of each update.", "No loss was logged.")


def margin(run: RunData) -> Figure:
    """How far the better output is ahead of the worse one, by the method's score."""
    note = "By how much the chosen output's score is ahead of the rejected one's; 0 before the first update."
    missing = "No margin was logged: this method compares no two outputs."
    return _train_figure(run, "Margin", ["margin", "ahead"], note, missing, rules=(Rule(0.0, ""),))


def accuracy(run: RunData) -> Figure:
    """Pairs, or rows, that are on the right side."""
    note = "Share of pairs whose chosen output is ahead; half of them by chance."
    return _train_figure(run, "Accuracy", ["accuracy"], note, "No accuracy was logged.", rules=(Rule(0.5, ""),))


def log_ratios(run: RunData) -> Figure:
    """How much likelier than the reference the policy makes chosen and rejected outputs: the margin can grow while both fall."""
    note = "Log-ratio to the reference (log-probability without one), nats; of a reward model, its scores."
    note += " A margin may grow while both fall, also the chosen one."
    missing = "No log-ratios of chosen and rejected outputs were logged."
    names = {"better": "chosen", "worse": "rejected"}
    return _train_figure(run, "Log-ratios of chosen and rejected outputs", list(names), note, missing, words=names)


def _train_figure(
    run: RunData,
    title: str,
    names: Sequence[str],
    note: str,
    missing: str,
    *,
    rules: Sequence[Rule] = (),
    words: Mapping[str, str] | None = None,
) -> Figure:
    """Columns of the training log over steps. missing: what is said where there are none. words: column -> what it is called."""
    series = []
    for index, name in enumerate(names):
        points = [(float(row["step"]), float(row[name])) for row in run.train if _finite(row.get(name))]
        if points:
            series.append(Series((words or {}).get(name, name.replace("_", " ")), thin(points), colour=index))
    for index, name in enumerate(names):
        if evaluated := curve(run.evals, HELD_OUT + name):
            line, bands = [(float(p.step), p.value) for p in evaluated], [p.error or 0.0 for p in evaluated]
            label = f"{(words or {}).get(name, name.replace('_', ' '))}, held out"
            series.append(Series(label, line, dashed=True, marks=True, bands=bands, words=_words(evaluated), colour=index))
    if not series:
        return Figure(title, missing)
    values = [y for s in series for _, y in s.points]
    log_y = bool(rules) and rules[0].y > 0 and min(values) > 0 and max(values) / min(values) > 50
    note += " Dashed: on records that it is not trained on." if any(s.dashed for s in series) else ""
    return _figure(title, note + (" Logarithmic scale." if log_y else ""), series, x_word="step", rules=rules, log_y=log_y)


def _figure(
    title: str, note: str, series: Sequence[Series], *, x_word: str, rules: Sequence[Rule] = (), log_y: bool = False, steps: bool = True
) -> Figure:
    ends = [f"{s.name} from {short(s.points[0][1])} to {short(s.points[-1][1])}" for s in series]
    plot = Plot(series, x_word, f"{title}: {'; '.join(ends)}", rules, log_y, steps)
    legend = tuple((s.name, f"s{s.colour % 6}{' dashed' if s.dashed else ''}") for s in series)
    return Figure(title, note, draw(plot), legend if len(legend) > 1 else ())


def _words(points: Sequence[Point]) -> list[str]:
    return [f"{short(p.value)} at step {p.step}" for p in points]


def _scale(points: Sequence[Point]) -> tuple[float, float]:
    origin = points[0].value
    return origin, max((abs(p.value - origin) for p in points), default=0.0) or 1.0


def _scales_differ(curves: Sequence[Sequence[Point]]) -> bool:
    """Whether one axis would flatten one of the curves: their largest values are more than 8 times apart."""
    tops = [max(abs(p.value) for p in points) for points in curves if points]
    tops = [top for top in tops if top > 0]
    return len(tops) > 1 and max(tops) / min(tops) > 8


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary as (words, value) for a table: lists and mappings in one line each, ``gold_after`` with its ``gold_se_after``."""
    rows = []
    errors = {key.replace("_se_", "_"): key for key in summary if "_se_" in key and key.replace("_se_", "_") in summary}
    for key, value in summary.items():
        if key in errors.values():
            continue
        if isinstance(value, bool) or value is None:
            shown = {True: "yes", False: "no", None: "none"}[value]
        elif isinstance(value, float):
            shown = short(value)
        elif isinstance(value, int):
            shown = f"{value:,}" if abs(value) >= 10_000 and key != "seed" else str(value)
        elif isinstance(value, list):
            shown = ", ".join(str(item) for item in value) or "none"
        else:
            shown = str(value)
        error = summary.get(errors.get(key, ""))
        rows.append((key.replace("_", " "), f"{shown} ± {short(error)}" if isinstance(error, (int, float)) else shown))
    return rows
