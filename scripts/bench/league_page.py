"""The league's page and its plots, from the lines of its results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]

HEAD = """\
# The league

Made by `python scripts/bench/league.py`, which says in its first lines who takes part, how settings were searched, and what is counted.
Numbers are medians over seeds, with the least and the most. Gold is a judge that no method sees; over-optimisation is the proxy, which
gives the reward, less gold. Rows are those that went through the denoiser in training. Seconds are of a processor, one thread, on a
machine that others shared.

`flow_grpo` is Flow-GRPO as it was published: all steps but the last random and trained, the KL to the base in the loss, two updates of a
rollout. Its rate and its clip, which is a hidden function of the latent's size, were searched as the others' rate and sampler were.
Settings that end below where they had been are those that trials of a third of the budget liked best.
"""


def gold_of(mark: Line) -> float:
    return float(mark["gold"])


def at_budget(line: Line, budget: int) -> Line:
    """The first mark at the budget or beyond; the last one where there is none."""
    marks: Sequence[Line] = line["marks"]
    return next((mark for mark in marks if mark["rows"] >= budget), marks[-1])


def rows_to(line: Line, target: float, base: float) -> float:
    """Rows at which gold first was the target, in a straight line between two marks; infinite where it never was."""
    before, gold = 0.0, base
    for mark in line["marks"]:
        if mark["gold"] >= target:
            return float(before + (mark["rows"] - before) * (target - gold) / (mark["gold"] - gold))
        before, gold = mark["rows"], mark["gold"]
    return math.inf


def several(values: Sequence[float], show: Callable[[float], str]) -> str:
    """The median, and the least and the most where they are others."""
    ordered = sorted(values)
    middle = show(statistics.median_high(ordered))
    ends = show(ordered[0]), show(ordered[-1])
    return middle if ends[0] == ends[1] else f"{middle} ({ends[0]} to {ends[1]})"


def decimals(value: float) -> str:
    return f"{value:.3f}"


def thousands(value: float) -> str:
    return "never" if math.isinf(value) else f"{value / 1000:.1f} k"


def of_world(name: str, world: Any, lines: Sequence[Line], published: str, kinds: Mapping[str, str]) -> list[str]:
    """The part of the page about one world; nothing where nobody has run there."""
    of = [line for line in lines if line["world"] == name]
    runs: dict[str, list[Line]] = {}
    for line in of:
        if line["kind"] == "seed" and "marks" in line:
            runs.setdefault(str(line["name"]), []).append(line)
    if not runs:
        return []
    base = next(line for line in of if line["kind"] == "base")
    memory = {line["name"]: line["bytes"] for line in of if line["kind"] == "memory" and "bytes" in line}
    beside = [key for key in base if key in ("spread_ratio", "identity")]
    shown = {method: [at_budget(run, world.budget) for run in several_runs] for method, several_runs in runs.items()}
    needed = {method: [rows_to(run, world.target, gold_of(base)) for run in several_runs] for method, several_runs in runs.items()}
    order = sorted(runs, key=lambda method: (statistics.median_high(needed[method]), -statistics.median(map(gold_of, shown[method]))))
    lines_out = [
        f"\n## {name}\n",
        f"Budget {thousands(world.budget)} rows of the denoiser; the base has gold {base['gold']:.3f}, proxy {base['proxy']:.3f}"
        + "".join(f", {key} {base[key]:.3f}" for key in beside) + ".\n",
        f"![gold over rows](league_{name}.svg)\n",
        f"| method | rows to gold {world.target:.2f} | of {published}'s | gold | {' | '.join(beside)} "
        "| proxy - gold | s | KiB a row | seeds |",
        f"|---|---|---|---|{'---|' * len(beside)}---|---|---|---|",
    ]  # fmt: skip
    for method in order:
        marks, many = shown[method], [f"{method} `{' '.join(runs[method][0]['changes'])}`"]
        many += [
            several(needed[method], thousands),
            fewer(needed[method], needed.get(published, [])),
            several(list(map(gold_of, marks)), decimals),
        ]
        many += [several([mark[key] for mark in marks], decimals) for key in beside]
        many += [several([mark["proxy"] - mark["gold"] for mark in marks], decimals)]
        many += [several([mark["seconds"] for mark in marks], lambda value: f"{value:.0f}")]
        many += [f"{memory[method] / 1024:.0f}" if method in memory else "?", str(len(marks))]
        lines_out.append(f"| {' | '.join(many)} |")
    out = [method for method in kinds if method not in runs]
    missing = [f"\nHave not run yet: {', '.join(out)}."] if out else []
    plain = [method for method in order if kinds.get(method) != "reward_gradient"]
    words = [
        verdict("All: first", order, needed, published, world),
        verdict("Without the reward's gradient: first", plain, needed, published, world),
    ]
    return [*lines_out, "", *words, *missing, *failures(of)]


def fewer(own: Sequence[float], published: Sequence[float]) -> str:
    """How often the rows go into those of the published method: of medians, and the least and the most over all pairs of seeds."""
    if not published or math.isinf(statistics.median_high(own)):
        return ""
    ratios = sorted(theirs / mine for theirs in published for mine in own)
    middle = statistics.median_high(published) / statistics.median_high(own)
    show = lambda ratio: f"1/{ratio:.1f}" if 0 < ratio < math.inf else "never"  # noqa: E731
    return f"{show(middle)} ({show(ratios[0])} to {show(ratios[-1])})"


def verdict(first: str, order: Sequence[str], needed: Mapping[str, Sequence[float]], published: str, world: Any) -> str:
    """Who is first, and by how much."""
    if published not in needed:
        return f"{published} has not run yet."
    best, theirs = order[0], needed[published]
    reached = sum(not math.isinf(rows) for rows in theirs)
    end = f"{reached} of {len(theirs)} seeds of {published} reach gold {world.target:.2f} within {thousands(world.long)} rows."
    if not reached or math.isinf(statistics.median_high(needed[best])):
        return end
    return f"{first} is {best}, with {fewer(needed[best], theirs)} of the rows that {published} takes to gold {world.target:.2f}. {end}"


def failures(lines: Sequence[Line]) -> list[str]:
    """What was refused, a line each."""
    words = dict.fromkeys(f"- {line['name']}: {line['failed']}" for line in lines if "failed" in line)
    return ["\nNot in the table:\n", *words] if words else []


def drawn(path: Path, name: str, world: Any, lines: Sequence[Line], kinds: Mapping[str, str]) -> None:
    """Gold over rows, a line for each method, the mean over its seeds, in the colour of its kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    runs: dict[str, list[Line]] = {}
    for line in lines:
        if line["world"] == name and line["kind"] == "seed" and "marks" in line:
            runs.setdefault(str(line["name"]), []).append(line)
    colours = {kind: f"C{number}" for number, kind in enumerate(sorted(set(kinds.values())))}
    styles = ["-", "--", ":", "-."]
    for number, (method, several_runs) in enumerate(sorted(runs.items())):
        count = min(len(run["marks"]) for run in several_runs)
        marks = [[run["marks"][place] for run in several_runs] for place in range(count)]
        rows, gold = ([statistics.mean(mark[key] for mark in at) for at in marks] for key in ("rows", "gold"))
        kind = kinds.get(method, "")
        axes.plot(rows, gold, styles[number % 4], color=colours.get(kind, "black"), linewidth=1.2, label=f"{method} ({kind})")
    axes.axhline(world.target, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="rows of the denoiser in training", ylabel="gold", title=name)
    axes.legend(fontsize=6, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, metadata={"Date": None})


def parts(page: str) -> dict[str, str]:
    """The parts of a page by their world.

    Examples:
        >>> parts("of all\\n\\n## one\\n\\na\\n\\n## two\\n\\nb\\n")
        {'one': '\\n## one\\n\\na\\n', 'two': '\\n## two\\n\\nb\\n'}
    """
    return {part.split("\n", 1)[0]: f"\n## {part.strip()}\n" for part in page.split("\n## ")[1:]}


def write(folder: Path, worlds: Mapping[str, Any], lines: Sequence[Line], *, published: str, kinds: Mapping[str, str]) -> None:
    """LEAGUE.md, and a plot for each world in which somebody has run. kinds: method -> its family. Where these lines have nobody who has
    run in a world, its part of the page that is there, and its plot, stay as they are."""
    path = folder / "LEAGUE.md"
    there = parts(path.read_text(encoding="utf-8")) if path.is_file() else {}
    page = HEAD
    for name, world in worlds.items():
        if part := of_world(name, world, lines, published, kinds):
            drawn(folder / f"league_{name}.svg", name, world, lines, kinds)
            page += "\n".join([*part, ""])
        else:
            page += there.get(name, "")
    path.write_text(page, encoding="utf-8")
