"""The tokens of a run's own samples: how concentrated their distributions are, and how many of them the base would not have said."""

from __future__ import annotations

from mmalign.report.plots import Figure, Plot, Series, draw, short
from mmalign.report.read import RunData
from mmalign.runs.overoptimisation import curve
from mmalign.runs.tokens import IN_WORDS, PREFIX

CONCENTRATION = "Likeliest tokens of the policy's own samples"
SHIFT = "Tokens that the base would not have said"


def figures(run: RunData) -> list[Figure]:
    """Entropy and mass of the likeliest tokens, and shares of marginal and shifted ones, over steps; empty where none were evaluated."""
    drawn = [
        _figure(run, CONCENTRATION, ("topk_entropy", "topk_mass"), "Both fall where a method over-optimises likelihoods."),
        _figure(run, SHIFT, ("marginal", "shifted"), "Of the policy's likeliest token at each place of its samples: its rank in the base."),
    ]
    return [figure for figure in drawn if figure is not None]


def _figure(run: RunData, title: str, names: tuple[str, ...], note: str) -> Figure | None:
    series = []
    for number, name in enumerate(names):
        points = curve(run.evals, PREFIX + name)
        words = [f"{short(point.value)} at step {point.step}" for point in points]
        bands = [point.error or 0.0 for point in points]
        line = [(float(point.step), point.value) for point in points]
        if line:
            series.append(Series(IN_WORDS[name], line, marks=True, bands=bands, words=words, colour=number))
    if not series:
        return None
    ends = "; ".join(f"{one.name} from {short(one.points[0][1])} to {short(one.points[-1][1])}" for one in series)
    legend = tuple((one.name, f"s{one.colour}") for one in series)
    return Figure(title, f"{note} Bands: one standard error.", draw(Plot(series, "step", f"{title}: {ends}")), legend)
