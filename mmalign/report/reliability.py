"""Figure: how far a pair method's probabilities may be believed, on records that it is not trained on."""

from __future__ import annotations

from mmalign.report.plots import Figure, Plot, Series, draw, short
from mmalign.report.read import RunData
from mmalign.runs.reliability import bins

READ = "1: calibrated; above it the scores are too far apart"
TITLE = "Predicted against observed, held out"


def figure(run: RunData) -> Figure | None:
    """Bins of the first and the last evaluation that have some; None where nothing was compared."""
    evaluated = [row for row in run.evals if bins(row)]
    if not evaluated:
        return None
    series = [Series("what is calibrated", [(0.5, 0.5), (1.0, 1.0)], dashed=True, colour=1)]
    last = evaluated[-1]
    found = bins(last)
    words = [f"{one.size:.0f} said {one.predicted:.2f}, right {one.observed:.2f} ({one.low:.2f} to {one.high:.2f})" for one in found]
    crosses = [(0.0, (one.high - one.low) / 2) for one in found]
    labels = [f"{one.size:.0f}" for one in found]
    points = [(one.predicted, one.observed) for one in found]
    name = f"step {last['step']}"
    series.append(Series(name, points, marks=True, words=words, colour=0, faint=True, crosses=crosses, labels=labels))
    note = (
        "Comparisons by how sure the model was of its order, and the part of them that people ordered alike; numbers: how many there are;"
    )
    note += f" bars: as long as Wilson's 95 % interval. Expected calibration error {short(float(last['held_out/ece']))}"
    temperature = last.get("held_out/temperature")  # of comparisons that are all even there is none
    note += "." if temperature is None else f", the best temperature {short(float(temperature))} ({READ})."
    alt = f"{TITLE}: " + "; ".join(words)
    plot = Plot(series, "probability that it gave", alt, steps=False, y_word="part that was right")
    return Figure(TITLE, note, draw(plot), tuple((one.name, f"s{one.colour}{' dashed' if one.dashed else ''}") for one in series))
