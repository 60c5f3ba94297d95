"""The page of one evaluation: its numbers with their intervals, drawn, what was missing, and what belongs beside them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

MOST = 60  # rows that are drawn; the table has all


def page(results: Mapping[str, Any]) -> str:
    """One self-contained page of HTML. results: what ``results.json`` holds."""
    from jinja2 import Environment
    from markupsafe import Markup

    values = results["values"]
    first = [name for name in results.get("headline", ()) if name in values]
    names = [*first, *(name for name in values if name not in first)]
    rows = [(name, *(_number(values[name][key]) for key in ("value", "low", "high"))) for name in names]
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(
        title=f"{results['suite']}: {results.get('who', '')}", rows=rows, counts=results["counts"], notes=results["notes"],
        published={name: _number(value) for name, value in results["published"].items()}, figure=Markup(_drawn(names, values)),
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _drawn(names: Sequence[str], values: Mapping[str, Mapping[str, float]]) -> str:
    """The shares among the numbers with their intervals, as SVG; '' for none."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shares = [name for name in names if 0 <= values[name]["value"] <= 1][:MOST]
    if not shares:
        return ""
    figure = Figure(figsize=(7.2, 0.6 + 0.24 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(reversed(shares)):
        one = values[name]
        axes.plot([one["low"], one["high"]], [place, place], color="0.6", linewidth=3, solid_capstyle="butt")
        axes.plot([one["value"]], [place], "o", color="C0", markersize=4)
    axes.set_yticks(range(len(shares)), list(reversed(shares)), fontsize=8)
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right", "left"]].set_visible(False)
    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": "mmalign"}):  # the same numbers are the same page
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue().partition("<svg")[1] + drawn.getvalue().partition("<svg")[2]


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #eee }
td:first-child, th:first-child { text-align: left } svg { max-width: 100%; height: auto } .quiet { color: #666 }
</style></head><body>
<h1>{{ title }}</h1>
{{ figure }}
<table><tr><th></th><th>value</th><th>95 % from</th><th>to</th></tr>
{% for name, value, low, high in rows %}<tr><td>{{ name }}</td><td>{{ value }}</td><td>{{ low }}</td><td>{{ high }}</td></tr>
{% endfor %}</table>
<p>{% for name, count in counts.items() %}{{ name }} {{ count }}{{ "" if loop.last else ", " }}{% endfor %}</p>
{% if published %}<p>As the published script counts: {% for name, value in published.items() %}{{ name }} {{ value }}\
{{ "" if loop.last else ", " }}{% endfor %}</p>{% endif %}
{% for note in notes %}<p class="quiet">{{ note }}</p>
{% endfor %}</body></html>
"""
