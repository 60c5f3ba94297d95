"""Several runs on one page: their numbers, where their configs differ, and what a run without some of it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmalign.report.comparison import comparison, differences, figures, told_apart
from mmalign.report.read import read
from tests.helpers.fake_run import CONFIG, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root, name="sound")
    make_run(root, name="hacked", overoptimised=True, config={**CONFIG, "method": {"use": "flow_grpo", "clip": 1e-3}, "seed": 4})
    return [read(root / name) for name in ("sound", "hacked")]


def test_names_hold_as_much_as_tells_runs_apart():
    assert told_apart([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert told_apart([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "b/y"]
    assert told_apart([]) == []


def test_settings_that_differ_and_no_other():
    one = {"run": {"name": "a"}, "method": {"use": "m", "clip": 0.1, "list": [1, 2]}, "steps": 3}
    other = {"run": {"name": "b"}, "method": {"use": "m", "clip": 0.2, "list": [1, 2]}, "seed": None}
    assert differences([one, other]) == [("method.clip", ["0.1", "0.2"]), ("steps", ["3", ""]), ("seed", ["", "null"])]
    assert differences([one, {**one, "run": {"name": "c", "folder": "elsewhere"}}]) == []


def test_the_page_says_what_each_came_to(runs):
    page = comparison(runs)
    rows = {name: page.split(f"{name}</th><td>")[1].split("</tr>")[0] for name in ("sound", "hacked")}
    for run in runs:
        last = run.evals[-1]["gold"]
        assert f"{last:.2f}" in rows[run.path.name] and "step 100" in rows[run.path.name]
    assert "best" in rows["hacked"] and re.search(r'class="alarm">hacked: ', page) and 'class="alarm">sound' not in page
    assert "<th>method.clip</th><td>0.0001</td><td>0.001</td>" in page and "policy.use" not in page
    assert page.count("data-run>") == 2 and page.count('data-step="100"') == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_number_has_one_figure_with_a_line_for_each_run(runs):
    drawn = figures(runs, ["sound", "hacked"])
    titles = [figure.title for figure in drawn]
    assert titles[0] == "gold" and len(titles) == len(set(titles)) and {"proxy", "Training reward"} <= set(titles)
    for figure in drawn:
        assert figure.svg.count('class="line s0') == figure.svg.count('class="line s1') == 1, figure.title


def test_a_run_that_has_just_begun_stands_beside_the_others(runs, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("steps: 5\n")
    page = comparison([*runs, read(tmp_path / "new")])
    assert page.count("not evaluated") >= 2 and "No sample grid." in page and "Running, step 0 of 5" in page


def test_what_users_wrote_is_escaped(runs, tmp_path):
    name = "<script>alert(1)<"
    make_run(tmp_path, name="x", config={**CONFIG, "note": name})
    page = comparison([runs[0], read(tmp_path / "x")])
    assert name not in page and "&lt;script&gt;alert(1)&lt;" in page
