"""The league's page and its plots, from the lines of its results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Line = Mapping[str, Any]

HEAD = """\
# The league

Made by `python scripts/bench/league.py`, which says in its first lines who takes part, how settings were searched, and what is counted.
Numbers are medians over seeds, with the least and the most. Gold is a judge that no method sees, asked at marks along the run; the proxy is
what gives the reward, and where it is far above gold, a method has learned the proxy's faults. "At the end" is at the budget; "best" is the
best of all marks, each of which is some .03 off by chance. Rows are those that went through the denoiser in training: of rollouts,
references, preflight and updates alike. Seconds are of a processor, one thread, on a machine that others shared, evaluations left out. KiB
a row is what one row more costs at the peak of a step. Settings that end below where they had been are those that trials of a third of the
budget liked best.

`flow_grpo` is Flow-GRPO as it was published: all steps but the last random and trained, the KL to the base in the loss, two updates of a
rollout. It is searched twice as widely as the others: its clip, which is a hidden function of the latent's size, beside its rate and its
sampler's steps. Nobody has guidance here. With it a row of Flow-GRPO's is two, and one of those that train without it is still one.
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


class Standing(NamedTuple):
    """What the seeds of a method came to. needed: rows to the target; ends: marks at the budget; best: gold at the best one so far."""

    name: str
    kind: str
    changes: Sequence[str]
    needed: Sequence[float]
    ends: Sequence[Line]
    best: Sequence[float]
    bytes: float | None

    @property
    def place(self) -> tuple[float, float]:
        return statistics.median_high(self.needed), -statistics.median(map(gold_of, self.ends))

    @property
    def there(self) -> str:
        return f"{sum(not math.isinf(rows) for rows in self.needed)} of {len(self.needed)}"


def seeds_of(lines: Sequence[Line], world: str) -> dict[str, list[Line]]:
    """method -> the lines of its seeds in a world."""
    runs: dict[str, list[Line]] = {}
    for line in lines:
        if line["world"] == world and line["kind"] == "seed" and "marks" in line:
            runs.setdefault(str(line["name"]), []).append(line)
    return runs


def standings(name: str, world: Any, lines: Sequence[Line], kinds: Mapping[str, str]) -> list[Standing]:
    """All that have run in a world, the first one first."""
    base = next((gold_of(line) for line in lines if line["world"] == name and line["kind"] == "base"), math.nan)
    memory = {line["name"]: line["bytes"] for line in lines if line["world"] == name and "bytes" in line}
    found = []
    for method, runs in seeds_of(lines, name).items():
        ends = [at_budget(run, world.budget) for run in runs]
        best = [max(gold_of(mark) for mark in run["marks"] if mark["rows"] <= end["rows"]) for run, end in zip(runs, ends, strict=True)]
        needed = [rows_to(run, world.target, base) for run in runs]
        found.append(Standing(method, kinds.get(method, ""), runs[0]["changes"], needed, ends, best, memory.get(method)))
    return sorted(found, key=lambda standing: standing.place)


def of_world(name: str, world: Any, lines: Sequence[Line], published: str, kinds: Mapping[str, str]) -> list[str]:
    """The part of the page about one world; nothing where nobody has run there."""
    order = standings(name, world, lines, kinds)
    if not order:
        return []
    of = [line for line in lines if line["world"] == name]
    base = next(line for line in of if line["kind"] == "base")
    beside = [key for key in base if key in ("spread_ratio", "identity")]
    theirs = next((standing.needed for standing in order if standing.name == published), [])
    words = [
        f"\n## {name}\n",
        f"Budget {thousands(world.budget)} rows of the denoiser; the base has gold {base['gold']:.3f}, proxy {base['proxy']:.3f}"
        + "".join(f", {key} {base[key]:.3f}" for key in beside)
        + f". Rates {' and '.join(shortly(rate) for rate in world.rates)} were tried"
        + (".\n" if world.values > 1 else ", with one value of each knob.\n"),
        *verdicts(order, published, world),
        f"\n![gold over rows](league_{name}.svg)\n",
        f"| method | family | rows to gold {world.target:.2f} | seeds there | of {published}'s rows | gold at the end | best gold |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in order:
        needed = several(one.needed, thousands), one.there, fewer(one.needed, theirs, world.long)
        golds = [several(values, decimals) for values in (list(map(gold_of, one.ends)), one.best)]
        words.append(table_row(one.name, spaced(one.kind), *needed, *golds))
    words += [
        "\nWhat it cost, and the settings that the search chose:\n",
        f"| method | {' | '.join(map(spaced, beside))} | proxy less gold | seconds | KiB a row | settings |",
        f"|---|{'---|' * len(beside)}---|---|---|---|",
    ]
    for one in order:
        sides = [several([mark[key] for mark in one.ends], decimals) for key in beside]
        sides += [several([mark["proxy"] - mark["gold"] for mark in one.ends], decimals)]
        sides += [several([mark["seconds"] for mark in one.ends], lambda value: f"{value:.0f}")]
        sides += ["" if one.bytes is None else f"{one.bytes / 1024:.0f}", ", ".join(map(setting, one.changes))]
        words.append(table_row(one.name, *sides))
    out = [method for method in kinds if method not in {one.name for one in order}]
    return [*words, *([f"\nHave not run here: {', '.join(out)}."] if out else []), *failures(of)]


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def spaced(word: str) -> str:
    return word.replace("_", " ")


def shortly(number: Any) -> str:
    """
    Examples:
        >>> shortly(0.003), shortly("0.01"), shortly(4)
        ('.003', '.01', '4')
    """
    return str(number).removeprefix("0") if str(number).startswith("0.") else str(number)


def setting(change: str) -> str:
    """
    Examples:
        >>> setting("policy.of.schedule.steps=4"), setting("optimizer.rate=0.003")
        ('steps 4', 'rate .003')
    """
    key, value = change.split("=", 1)
    return f"{key.rsplit('.', 1)[-1]} {shortly(value)}"


def fewer(own: Sequence[float], published: Sequence[float], long: float) -> str:
    """How often the rows go into those of the published method: of medians, and the most and the least over all pairs of seeds.

    long: the most rows of the published method; where its median never was there, the ratio is below that of these.
    """
    if not published or math.isinf(statistics.median_high(own)):
        return ""
    if math.isinf(statistics.median_high(published)):
        return f"below 1/{long / statistics.median_high(own):.1f}"
    ratios = sorted((theirs / mine for theirs in published for mine in own), reverse=True)
    middle = statistics.median_high(published) / statistics.median_high(own)
    return f"{part(middle)} ({part(ratios[0])} to {part(ratios[-1])})"


def part(ratio: float) -> str:
    """
    Examples:
        >>> part(4.0), part(0.5), part(0.0)
        ('1/4.0', '2.0', 'never')
    """
    if not 0 < ratio < math.inf:
        return "never"
    return f"1/{ratio:.1f}" if ratio > 1 else f"{1 / ratio:.1f}"


def verdicts(order: Sequence[Standing], published: str, world: Any) -> list[str]:
    """Who is first, with the reward's gradient and without it, and by how much."""
    theirs = next((standing.needed for standing in order if standing.name == published), None)
    if theirs is None:
        return [f"{published} has not run yet."]
    without = [one for one in order if one.kind != "reward_gradient"]
    said = []
    for first, best in (("first of all is", order[0]), ("first of those that take no gradient of the reward is", without[0])):
        if not math.isinf(statistics.median_high(best.needed)):
            ratio = fewer(best.needed, theirs, world.long)
            said.append(f"To gold {world.target:.2f} {first} **{best.name}**, with {ratio} of the rows that {published} takes.")
    reached = sum(not math.isinf(rows) for rows in theirs)
    return [*said, f"{reached} of {len(theirs)} seeds of {published} are there within {thousands(world.long)} rows."]


def failures(lines: Sequence[Line]) -> list[str]:
    """What was refused, a line each."""
    refused = [(line, ", ".join(map(setting, line.get("changes", [])))) for line in lines if "failed" in line]
    words = dict.fromkeys(f"- {line['name']}, {settings}: {line['failed']}" for line, settings in refused)
    return ["\nRefused, so that it is no trial or seed of its method:\n", *words] if words else []


PANEL = 6
"""Methods in one panel of a plot."""


def panels(order: Sequence[Standing], published: str) -> list[tuple[str, list[str]]]:
    """What each panel is called, and its methods: those of a family, the first ones first, in parts that can be told apart."""
    families: dict[str, list[str]] = {}
    for one in order:
        if one.name != published:
            families.setdefault(one.kind, []).append(one.name)
    found = []
    for kind, names in families.items():
        count = math.ceil(len(names) / PANEL)
        size = math.ceil(len(names) / count)
        parts = [names[start : start + size] for start in range(0, len(names), size)]
        found += [(f"{spaced(kind)}{f', {place} of {count}' if count > 1 else ''}", part) for place, part in enumerate(parts, 1)]
    return found


def drawn(path: Path, name: str, world: Any, lines: Sequence[Line], *, published: str, kinds: Mapping[str, str]) -> None:
    """Gold over rows, in a panel for each family: the median over seeds, from the least to the most; the published method black in each."""
    from matplotlib.figure import Figure

    runs, shown = seeds_of(lines, name), panels(standings(name, world, lines, kinds), published)
    columns = min(3, max(1, len(shown)))
    count = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(1 + 4.2 * columns, 0.6 + 3.4 * count), layout="constrained")
    grid = figure.subplots(count, columns, sharey=True, squeeze=False)
    for axes, (title, names) in zip(grid.flat, shown, strict=False):
        for number, method in enumerate([*names, *([published] if published in runs else [])]):
            places = range(min(len(run["marks"]) for run in runs[method]))
            rows = [statistics.median(run["marks"][place]["rows"] for run in runs[method]) for place in places]
            gold = [sorted(gold_of(run["marks"][place]) for run in runs[method]) for place in places]
            colour = "black" if method == published else f"C{number}"
            axes.plot(rows, [statistics.median(at) for at in gold], color=colour, linewidth=1.5, label=method)
            axes.fill_between(rows, [at[0] for at in gold], [at[-1] for at in gold], color=colour, alpha=0.1, linewidth=0)
        axes.axhline(world.target, color="grey", linewidth=0.8, linestyle=":")
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=7.5, loc="best", framealpha=0.85)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    ticks = [size for power in range(2, 6) for size in (10**power, 3 * 10**power) if size <= world.budget]
    for axes in grid.flat:
        axes.set(xscale="log", xlim=(world.budget / 100, 1.1 * world.budget))
        axes.set_xticks(ticks, [thousands(size) if size >= 1000 else str(size) for size in ticks])
        axes.minorticks_off()
    figure.supxlabel("rows of the denoiser in training", fontsize=10)
    figure.supylabel(f"gold, {spaced(name)}", fontsize=10)
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
    run in a world, its part of the page that is there, and its plot, stay as they are, as do parts that are of no world."""
    path = folder / "LEAGUE.md"
    there = parts(path.read_text(encoding="utf-8")) if path.is_file() else {}
    page = HEAD
    for name, world in worlds.items():
        if part := of_world(name, world, lines, published, kinds):
            drawn(folder / f"league_{name}.svg", name, world, lines, published=published, kinds=kinds)
            page += "\n".join([*part, ""])
        else:
            page += there.get(name, "")
    page += "".join(part for name, part in there.items() if name not in worlds)
    path.write_text(page, encoding="utf-8")
