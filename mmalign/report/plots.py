"""Line plots as SVG that takes its colours and type from the page around it, so that one drawing serves light and dark.

Drawn by hand: a matplotlib figure fixes its colours and type, and weighs twenty times as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
COLOURS = 6  # classes s0 .. s5 of the page
MOST_POINTS = 300
CLOSEST = 3e-3  # of the largest number of an axis, which its span is at least: labels of four figures tell ticks apart then


@dataclass(frozen=True)
class Figure:
    """``svg`` is empty where there is nothing to draw, and ``note`` says why. ``legend``: (name, css classes)."""

    title: str
    note: str
    svg: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Series:
    """A line: ``points`` (x, y) finite; ``bands`` half-heights beside them, 0 for none; ``words`` shown over each point.

    faint: the line is thin, the marks are what counts. crosses: half widths and half heights around each point. labels: beside them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    marks: bool = False
    bands: Sequence[float] = ()
    words: Sequence[str] = ()
    colour: int = 0
    faint: bool = False
    crosses: Sequence[tuple[float, float]] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Rule:
    """A horizontal line with a word on it."""

    y: float
    word: str


@dataclass(frozen=True)
class Plot:
    """What ``draw`` makes a picture of. ``steps``: the horizontal axis is training steps, and the page's slider marks it.

    pad_x: room left and right of the points, as a part of their span. y_word: on the vertical axis.
    """

    series: Sequence[Series]
    x_word: str
    alt: str
    rules: Sequence[Rule] = field(default_factory=tuple)
    log_y: bool = False
    steps: bool = True
    pad_x: float = 0.0
    y_word: str = ""


def short(value: float) -> str:
    """A number as people write it: three figures, no exponent unless it must be."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "not a number"
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace(".0e", "e")
    decimals = next((decimals for least, decimals in ((100, 0), (10, 1), (0.1, 2)) if size >= least), 3)
    return f"{value:.{decimals}f}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About ``wanted`` round numbers (1, 2 or 5 times a power of ten apart) inside ``low .. high``."""
    span = high - low
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: means of neighbours where there are more."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def draw(plot: Plot) -> str:
    """The plot as an ``<svg>`` element; every word in it is escaped."""
    wide = [x + sign * dx for s in plot.series for (x, _), (dx, _) in _with_crosses(s) for sign in (-1, 1)]
    low_x, high_x = _padded(wide, pad=plot.pad_x)
    values = [y + sign * band for s in plot.series for (_, y), band in _with_bands(s) for sign in (-1, 1)]
    values += [y + sign * dy for s in plot.series for (_, y), (_, dy) in _with_crosses(s) for sign in (-1, 1)]
    lift = math.log10 if plot.log_y else float
    low_y, high_y = _padded([lift(v) for v in [*values, *(rule.y for rule in plot.rules)]], pad=0.06)

    def at_x(x: float) -> float:
        return LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (lift(y) - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    cursor = f' data-x0="{low_x}" data-x1="{high_x}" data-left="{LEFT}" data-right="{WIDTH - RIGHT}"' if plot.steps else ""
    body = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.alt)}"{cursor}>']
    y_marks = _log_ticks(low_y, high_y) if plot.log_y else ticks(low_y, high_y, 4)
    for y in y_marks:
        body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        body.append(f'<text class="tick" x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{_tick(y, y_marks)}</text>')
    x_marks = [x for x in ticks(low_x, high_x, 5) if not plot.steps or x == round(x)]  # there is no step 2.5
    for x in x_marks:
        body.append(f'<text class="tick" x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_tick(x, x_marks)}</text>')
    body.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(plot.x_word)}</text>')
    if plot.y_word:
        body.append(f'<text class="axis" x="{LEFT}" y="{TOP - 4}">{escape(plot.y_word)}</text>')
    for rule in plot.rules:
        body.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(rule.y):.1f}" y2="{at_y(rule.y):.1f}"/>')
        body.append(f'<text class="rule" x="{WIDTH - RIGHT - 4}" y="{at_y(rule.y) - 4:.1f}" text-anchor="end">{escape(rule.word)}</text>')
    if plot.steps:
        body.append(f'<line class="cursor" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" hidden="hidden"/>')
    for series in plot.series:
        body.extend(_line(series, at_x, at_y))
    return "\n".join([*body, "</svg>"])


def _line(series: Series, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[str]:
    kind = f"s{series.colour % COLOURS}" + (" dashed" if series.dashed else "") + (" faint" if series.faint else "")
    parts = []
    if any(series.bands):
        upper = [f"{at_x(x):.1f},{at_y(y + band):.1f}" for (x, y), band in _with_bands(series)]
        lower = [f"{at_x(x):.1f},{at_y(y - band):.1f}" for (x, y), band in _with_bands(series)]
        parts.append(f'<polygon class="band {kind}" points="{" ".join(upper + lower[::-1])}"/>')
    path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in series.points)
    parts.append(f'<polyline class="line {kind}" points="{path}"/>')
    for (x, y), (dx, dy) in _with_crosses(series):
        if dx or dy:
            ends = (x - dx, y, x + dx, y), (x, y - dy, x, y + dy)
            lines = (f"M{at_x(a):.1f},{at_y(b):.1f}L{at_x(c):.1f},{at_y(d):.1f}" for a, b, c, d in ends)
            parts.append(f'<path class="cross {kind}" d="{"".join(lines)}"/>')
    if series.marks or len(series.points) == 1:
        for index, (x, y) in enumerate(series.points):
            word = series.words[index] if index < len(series.words) else f"{short(y)} at {short(x)}"
            title = f"<title>{escape(series.name)}: {escape(word)}</title>"
            parts.append(f'<circle class="mark {kind}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3">{title}</circle>')
    for number, ((x, y), label) in enumerate(zip(series.points, series.labels, strict=False)):
        if label:  # the first above its mark, others below it
            right, down = at_x(x) < 0.75 * WIDTH, -7 if number == 0 else 17
            place = f'x="{at_x(x) + (7 if right else -7):.1f}" y="{at_y(y) + down:.1f}" text-anchor="{"start" if right else "end"}"'
            parts.append(f'<text class="label" {place}>{escape(label)}</text>')
    return parts


def _with_crosses(series: Series) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    return list(zip(series.points, series.crosses or [(0.0, 0.0)] * len(series.points), strict=True))


def _with_bands(series: Series) -> list[tuple[tuple[float, float], float]]:
    return list(zip(series.points, series.bands if any(series.bands) else [0.0] * len(series.points), strict=True))


def _padded(values: Sequence[float], *, pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = 0.5 * max(abs(high), 1.0) if pad == 0 else 0.1 * max(abs(high), 0.1)
        return low - half, high + half
    least = CLOSEST * max(abs(low), abs(high)) if pad else 0.0
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    return low - pad * (high - low), high + pad * (high - low)


def _log_ticks(low: float, high: float) -> list[float]:
    whole = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    every = max(1, math.ceil(len(whole) / 5))
    return [10.0**k for k in whole if k % every == 0] or [10.0**low, 10.0**high]


def _tick(value: float, marks: Sequence[float]) -> str:
    gap = min((b - a for a, b in pairwise(marks)), default=abs(value) or 1.0)
    if abs(value) < gap * 1e-6:
        return "0"
    if abs(value) >= 1e5 or gap < 9e-5:
        figures = math.ceil(math.log10(abs(value) / gap) - 1e-9)
        mantissa, _, exponent = f"{value:.{figures}e}".partition("e")
        return (short(value) if figures <= 1 else f"{mantissa}e{int(exponent)}").replace("-", "\N{MINUS SIGN}")
    return f"{value:.{max(0, -math.floor(math.log10(gap) + 1e-9))}f}".replace("-", "\N{MINUS SIGN}")
