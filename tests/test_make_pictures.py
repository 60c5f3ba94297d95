"""The shipped pictures, questions and pairs are those that the script makes, and they fit together."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import mmalign as mm

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_pictures.py"


def test_the_files_are_what_the_script_makes():
    from PIL import Image

    made = runpy.run_path(str(SCRIPT))
    for name, lines in zip(("questions", "pairs"), made["rows"](), strict=True):
        assert [json.loads(line) for line in (made["FOLDER"] / f"{name}.jsonl").read_text().splitlines()] == lines
    for number, scene in enumerate(made["scenes"]()):
        there, here = Image.open(made["FOLDER"] / f"{number:02}.png").convert("RGB"), made["drawn"](scene, number)
        apart = max(abs(a - b) for one, other in zip(there.getdata(), here.getdata(), strict=True) for a, b in zip(one, other, strict=True))
        assert apart <= 8  # sixteen colours hold them nearly


def test_every_picture_shows_what_is_said_of_it():
    made = runpy.run_path(str(SCRIPT))
    questions, pairs = made["rows"]()
    assert len({row["question"] for row in questions}) == len(questions) == len(made["scenes"]())
    for number, scene in enumerate(made["scenes"]()):
        colours = {tuple(int(made["COLOURS"][group.colour][at : at + 2], 16) for at in (1, 3, 5)) for group in scene}
        assert set(made["drawn"](scene, number).getdata()) == colours | {(255, 255, 255)}
        assert questions[number]["answer"] == str(scene[0].number) and str(scene[0]) in pairs[number]["chosen"]
        assert pairs[number]["chosen"] != pairs[number]["rejected"]


def test_they_are_read():
    folder = runpy.run_path(str(SCRIPT))["FOLDER"]
    assert len(mm.data.picture_prompts(str(folder / "questions.jsonl"))) == 18
    records = mm.data.picture_texts(str(folder / "pairs.jsonl"))
    assert len(records.first(30)) == 18 and not records.broken
