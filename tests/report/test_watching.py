"""The server of pages of runs: what is drawn anew and what is not, runs that come and go, and who may ask."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="the extra label is not installed")
import httpx2

import mmalign as mm
from mmalign.report import watching
from mmalign.report.page import render
from mmalign.report.read import read
from mmalign.report.watching import Watch, application, version
from mmalign.types import UserError
from tests.helpers.fake_run import make_run


def ask(app, path, host="127.0.0.1"):
    async def asked():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=f"http://{host}") as client:
            return await client.get(path)

    answer = asyncio.run(asked())
    return answer.status_code, answer.json() if "json" in answer.headers.get("content-type", "") else answer.text


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path / "runs", name="one")
    return tmp_path / "runs"


def add_row(run, step=101):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "phase": "train", "reward": 0.5}) + "\n")


def test_a_page_is_what_the_report_would_be_and_is_drawn_once_for_each_state(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(watching, "render", lambda run: (drawn.append(run), render(run))[1])
    app = application(Watch([folder]))
    assert ask(app, "/pages/0") == (200, render(read(folder / "one"))) == ask(app, "/pages/0") and len(drawn) == 1
    add_row(folder / "one")
    assert "step 101" in ask(app, "/pages/0")[1] and len(drawn) == 2


def test_states_and_versions_tell_what_has_changed(folder):
    app = application(Watch([folder]))
    first = ask(app, "/runs")[1]["runs"]
    assert [run["name"] for run in first] == ["one"] and "step 100" in first[0]["state"] and first[0]["ago"] < 3600
    assert ask(app, "/runs")[1]["runs"][0]["version"] == first[0]["version"]
    add_row(folder / "one")
    second = ask(app, "/runs")[1]["runs"]
    assert second[0]["version"] != first[0]["version"] and "step 101" in second[0]["state"]
    (folder / "one" / "report.html").write_text("written by the run at its end")
    assert ask(app, "/runs")[1]["runs"][0]["version"] == second[0]["version"]


def test_runs_that_begin_later_are_there_and_no_more_than_can_be_seen(folder):
    watch = Watch([folder])
    app = application(watch)
    for number in range(watching.MOST + 1):
        run = folder / f"r{number}"
        run.mkdir()
        (run / "config.yaml").write_text("steps: 1\n")
        os.utime(run / "config.yaml", (4e9 + number, 4e9 + number))
    names = [run["name"] for run in ask(app, "/runs")[1]["runs"]]
    assert len(names) == watching.MOST and names[0] == f"r{watching.MOST}" and "one" not in names
    assert ask(app, "/pages/99")[0] == 404


def test_one_that_is_named_stands_first(folder, tmp_path):
    make_run(tmp_path / "else", name="two")
    assert [path.name for path in Watch([tmp_path / "else" / "two", folder]).runs()] == ["two", "one"]


def test_several_side_by_side(folder):
    make_run(folder, name="two", overoptimised=True)
    app = application(Watch([folder]))
    status, page = ask(app, "/comparison")
    assert status == 200 and page.count("data-run>") == 2


def test_a_file_that_goes_while_it_is_looked_at(folder, monkeypatch):
    before = version([folder / "one"])
    files = list(watching._shown(folder / "one"))
    monkeypatch.setattr(watching, "_shown", lambda path: iter([*files, path / "gone"]))
    assert version([folder / "one"]) != before


def test_the_frame_asks_nobody_else_and_strangers_are_refused(folder):
    app = application(Watch([folder]))
    status, page = ask(app, "/")
    assert status == 200 and "http" not in page
    assert ask(app, "/runs", host="evil.example")[0] == 400
    assert ask(application(Watch([folder]), hosts=["*"]), "/runs", host="somewhere.example")[0] == 200


def test_mistakes_and_the_page_as_a_file(folder, tmp_path):
    make_run(folder, name="two")
    out = mm.commands.side_by_side([str(folder)], out=str(tmp_path / "both.html"))
    assert out.read_text().count("data-run>") == 2
    for arguments, words in (
        (([str(folder / "one")], str(tmp_path / "b.html")), "1 runs, takes a name that ends in .html, and two runs"),
        (([str(folder)], str(tmp_path / "b.png")), "b.png"),
        (([str(folder / "nothing")], str(tmp_path / "b.html")), "not there; takes a run's folder"),
    ):
        with pytest.raises(UserError, match=words):
            mm.commands.side_by_side(arguments[0], out=arguments[1])
    with pytest.raises(UserError, match="not there"):
        mm.commands.watch([str(tmp_path / "nowhere")], port=0)


def test_the_command_until_it_is_told_to_stop(folder):
    command = [sys.executable, "-m", "mmalign", "watch", str(folder), "--no-open", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    address = line.split(" at ")[1].split()[0]
    assert httpx2.get(f"{address}runs", trust_env=False, timeout=300).json()["runs"][0]["name"] == "one" and "1 runs now" in line
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
