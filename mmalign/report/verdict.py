"""What a run came to, in one sentence of plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmalign.report.figures import HELD_OUT, scores_only
from mmalign.report.hallucination import columns, standings
from mmalign.report.pixels import headline
from mmalign.report.plots import short
from mmalign.report.read import RunData
from mmalign.runs.overoptimisation import SPREAD_LINE, Finding, curve, measurable
from mmalign.runs.pixels import Shift

MINUS = "\N{MINUS SIGN}"
ARROW = "\N{RIGHTWARDS ARROW}"
PERCENT = "\N{NO-BREAK SPACE}%"


def sentence(run: RunData, findings: Sequence[Finding], silence: Finding | None = None, moved: Sequence[Shift] = ()) -> str:
    """``gold 0.50 -> 0.96; spread 91 % of real data; no over-optimisation seen``, with what is missing said so.

    Of answers about images, what is invented and what is said come first, side by side. silence: what ``fell_silent`` found. moved: what
    ``shifts`` found in pixels.
    """
    if not run.evals:
        nothing = "nothing has been evaluated yet" if run.train else "nothing has been logged yet"
        return f"{state(run)}: {'; '.join(part for part in (_dead(run), nothing) if part)}"
    parts = [_dead(run), _hallucination(run), _changes(run), _held_out(run), _spread(run), _silence(silence), headline(moved)]
    parts.append(_flag(run, findings, moved))
    words = "; ".join(part for part in parts if part)
    return words[:1].upper() + words[1:]


def state(run: RunData) -> str:
    """``Finished, 100 steps`` and the like."""
    done = max((row["step"] for row in [*run.train, *run.evals]), default=0)
    total = run.config.get(f"{run.unit}s", run.summary.get("steps"))
    ended = run.summary.get("steps")
    resumed = isinstance(ended, int) and done > ended  # the summary is that of an earlier end
    status = "Running" if resumed else str(run.summary.get("status") or "running").capitalize()
    of = f" of {total}" if isinstance(total, int) and total != done else ""
    return f"{status}, {run.unit} {done}{of}"


def _dead(run: RunData) -> str:
    dead = run.summary.get("dead_steps")
    if run.summary.get("status") == "not finite":
        return f"it was ended, since numbers were not finite: {run.summary.get('not_finite')}"
    if not dead:
        return ""
    ended = {"learned nothing": "it learned nothing: ", "stopped learning": "it stopped learning: "}.get(str(run.summary.get("status")), "")
    return f"{ended}{dead} of {run.summary.get('steps')} steps taught nothing ({run.summary.get('dead_because')})"


def _hallucination(run: RunData) -> str:
    points = standings(run)
    if not points:
        return ""
    first, last = points[0], points[-1]
    invented = _percents(first.invented.value, last.invented.value)
    what = "mentions are inventions" if (columns(run) or ("",))[0] == "chair_i" else "answers invent something"
    return f"{invented} of {what}, {_percents(first.recalled.value, last.recalled.value)} of what is there is said"


def _percents(before: float, after: float) -> str:
    numbers = [f"{100 * value:.0f}" if value in (0, 1) else f"{100 * value:.1f}" for value in (before, after)]
    return f"{numbers[0]}{PERCENT} {ARROW} {numbers[1]}{PERCENT}"


def _silence(finding: Finding | None) -> str:
    return "" if finding is None else f"it says less since step {finding.began}"


def silent(finding: Finding) -> str:
    """A model that fell silent, in words."""
    fell = f"recall fell from {short(finding.best)} to {short(finding.last)} while inventions became fewer"
    return f"{fell}; its best was at step {finding.began}: less is invented because less is said"


def _changes(run: RunData) -> str:
    names = [*run.judges, *(run.rewards if not run.judges else [])][:2]
    moves = []
    for name in names:
        points = curve(run.evals, name)
        if len(points) > 1:
            moves.append(f"{name} {_move(points[0].value, points[-1].value)}")
        else:
            moves.append(f"{name} {short(points[0].value)}" if points else f"{name} has no number")
    return ", ".join(moves)


def _held_out(run: RunData) -> str:
    what = next((name for name in ("accuracy", "loss") if curve(run.evals, f"{HELD_OUT}{name}")), "")
    if not what:
        return ""
    points = curve(run.evals, f"{HELD_OUT}{what}")
    error = points[-1].error
    return f"{what} on held-out records {_move(points[0].value, points[-1].value)}" + (f" \N{PLUS-MINUS SIGN} {error:.2f}" if error else "")


def _move(before: float, after: float) -> str:
    """Both with digits enough to show two figures of the change, 2 to 4 after the point."""
    change = abs(after - before)
    digits = min(4, max(2, 1 - math.floor(math.log10(change)))) if change > 0 else 2
    if max(abs(before), abs(after)) >= 100:
        return f"{short(before)} {ARROW} {short(after)}"
    return f"{before:.{digits}f} {ARROW} {after:.{digits}f}".replace("-", MINUS)


def _spread(run: RunData) -> str:
    ratio = curve(run.evals, "spread_ratio")
    if ratio:
        return f"spread {100 * ratio[-1].value:.0f}{PERCENT} of real data"
    return ""


def _flag(run: RunData, findings: Sequence[Finding], moved: Sequence[Shift]) -> str:
    if run.summary.get("status") == "learned nothing":
        return ""
    if findings:
        return f"over-optimised since {run.unit} {findings[0].began} ({', '.join(_plain_name(finding) for finding in findings)} fell)"
    if scores_only(run):
        return ""
    if len(run.evals) < 2:
        return "one evaluation only, so nothing to compare yet"
    if not run.judges and not curve(run.evals, "spread_ratio") and not curve(run.evals, "spread"):
        if standings(run):
            return ""
        return "no judge and no spread, so over-optimisation cannot be told"
    if not run.rewards:
        return "no trained reward was evaluated, so over-optimisation cannot be told"
    if not all(measurable(curve(run.evals, name)) for name in run.judges):
        return "too few evaluations to tell whether it over-optimised"
    if low := _low_spread(run):
        return f"no judge fell, but {low}" if run.judges else f"no judge to check it, and {low}"
    if moved:
        return "no judge fell" if run.judges else "no judge to check it"
    return "no over-optimisation seen" if run.judges else "no judge to check it, and no alarming loss of spread"


def _low_spread(run: RunData) -> str:
    """What is said where the spread ends below the line that its figure shows; "" where it does not."""
    ratio = curve(run.evals, "spread_ratio")
    if not ratio or ratio[-1].value >= SPREAD_LINE:
        return ""
    return f"spread {'began and is' if ratio[0].value < SPREAD_LINE else 'fell'} below {100 * SPREAD_LINE:.0f}{PERCENT} of real data's"


def describe(finding: Finding, unit: str = "step") -> str:
    """One finding in words. unit: what a step is."""
    fell = f"{_plain_name(finding)} fell from {short(finding.best)} to {short(finding.last)} while {finding.reward} rose"
    return f"{fell}; its best was at {unit} {finding.began}, and by {unit} {finding.seen} the fall was beyond chance"


def _plain_name(finding: Finding) -> str:
    return "spread" if finding.name == "spread_ratio" else finding.name
