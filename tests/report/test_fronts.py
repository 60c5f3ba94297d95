"""The front of a run's evaluations, counted by hand."""

from __future__ import annotations

import json

import pytest
import yaml

from mmalign.report import build
from mmalign.report.fronts import figures, front
from mmalign.report.read import read

EVALUATIONS = [(0, 1.0, 4.0), (10, 2.0, 3.0), (20, 1.5, 2.5), (30, 3.0, None), (40, 4.0, 1.0), (50, 2.0, 3.0)]  # 20 is beaten by 10


def run(folder, combine=None, extra=(), columns=("a", "b")):
    folder.mkdir()
    config = {"use": "online", "rewards": {name: {"use": "length"} for name in [*columns, *extra]}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **({"combine": combine} if combine else {})}))
    rows = [{"phase": "eval", "step": step, columns[0]: a, columns[1]: b, **dict.fromkeys(extra, 1.0)} for step, a, b in EVALUATIONS]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(folder)


def test_a_front_by_hand(tmp_path):
    said = {"use": "hypervolume_weights", "weights": {"a": 1, "b": 1}, "worst": {"a": 0, "b": 0}}
    one = run(tmp_path / "run", said)
    found = front(one, one.rewards)
    assert found.steps == [0, 10, 20, 40, 50] and [found.steps[place] for place in found.places] == [0, 10, 40]
    assert found.volumes == pytest.approx([4, 7, 7, 9, 9])  # 1 x 4, then 1 x 3 more, then 2 x 1 more
    open_end = front(run(tmp_path / "open"), ["a", "b"])  # corner: 1 - .3 and 1 - .3
    assert open_end.corner == pytest.approx([0.7, 0.7]) and open_end.volumes[0] == pytest.approx(0.3 * 3.3)
    assert open_end.volumes[-1] == pytest.approx(0.3 * 3.3 + 1.0 * 2.3 + 2.0 * 0.3)
    page = build(tmp_path / "run").read_text()
    assert "The front of rewards" in page and "step 0, 10, 40, 3 of 5." in page
    assert "from 4.00 to 9.00; counted from a 0, b 0." in page


def test_costs_and_what_has_no_front(tmp_path):
    cost = front(run(tmp_path / "cost", {"use": "constrained", "limits": {"b": 2.0}}), ["a", "b"])  # the last has most of a, least of b
    assert cost.costs == ["b"] and [cost.steps[place] for place in cost.places] == [40]
    assert front(run(tmp_path / "weight", {"use": "weighted_sum", "weights": {"b": -1.0}}), ["a", "b"]).places == cost.places
    many = figures(run(tmp_path / "many", extra=["c", "d"]))
    assert [(one.title, bool(one.svg)) for one in many] == [("Hypervolume of rewards", False)] and "takes 3" in many[0].note
    with_c = run(tmp_path / "three", extra=["c"])
    three = figures(with_c)
    assert [(one.title, bool(one.svg)) for one in three] == [("Hypervolume of rewards", True)]
    assert "The same in every evaluation: c." in three[0].note
    assert front(with_c, ["a", "b", "c"]).volumes == pytest.approx(front(with_c, ["a", "b"]).volumes)  # not 0
    assert front(run(tmp_path / "single"), ["a"]) is None and front(run(tmp_path / "unknown"), ["a", "x"]) is None
