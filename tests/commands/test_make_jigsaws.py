"""Puzzles: put together by their answers, pieces are the image, clips the video, and points are in the order of their depths."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mmalign as mm
from mmalign.cli import app
from mmalign.commands.make_jigsaws import _points, make_jigsaws
from mmalign.media import Limits, footage
from mmalign.runs.pictures import write_mp4
from mmalign.types import UserError, columns_of, contents


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png", pixels


def media(folder: Path, row: int, kind: str):
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    return [folder / part[kind] for part in rows[row]["prompt"][0]["content"] if part["type"] == kind], rows[row]["order"]


def test_pieces_in_the_order_of_the_answer_are_the_image(image, tmp_path):
    path, pixels = image
    assert make_jigsaws([str(path)], out=str(tmp_path / "out"), grid=(2, 3), copies=3) == {"prompts": 3, "broken": 0}
    orders = set()
    for row in range(3):
        files, order = media(tmp_path / "out", row, "image")
        pieces = [np.array(Image.open(file)) for file in files]
        right = [pieces[number - 1] for number in order]
        put = np.concatenate([np.concatenate(right[line * 3 : line * 3 + 3], axis=1) for line in range(2)])
        assert np.array_equal(put, pixels[:, 1:49]) and order != sorted(order)  # 50 is no multiple of 3: the middle 48
        orders.add(tuple(order))
    assert len(orders) > 1
    prompts = mm.data.prompts(str(tmp_path / "out" / "prompts.jsonl"))
    truth = columns_of(prompts)["order"]
    said = [f"<think>so</think><answer>{', '.join(map(str, order))}</answer>" for order in truth]
    assert mm.rewards.jigsaw()(said, contents(prompts), order=truth).tolist() == pytest.approx([1.2] * 3)
    assert Path(contents(prompts)[0][0]["content"][1]["path"]).is_file()


def test_clips_in_the_order_of_the_answer_are_the_video(tmp_path):
    pytest.importorskip("av", reason="needs the extra video, which CI installs")
    levels = torch.linspace(20, 230, 24).byte()
    write_mp4(tmp_path / "film.mp4", levels[:, None, None, None].expand(-1, 3, 32, 32).contiguous())
    make_jigsaws([str(tmp_path / "film.mp4")], out=str(tmp_path / "out"), of="video", pieces=3, trim=0.25, frames=2)
    files, order = media(tmp_path / "out", 0, "video")
    means = [footage(str(file), Limits()).frames.double().mean((1, 2, 3)) for file in files]
    right = torch.cat([means[number - 1] for number in order])
    wanted = levels[[2, 5, 10, 13, 18, 21]].double()  # of each 8 frames, the two ends of the middle 4
    assert len(right) == 6 and (right - wanted).abs().max() < 8  # what MP4 loses


def test_points_from_the_nearest_to_the_farthest(image, tmp_path):
    big = np.full((120, 160, 3), 90, dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / "room.png")
    depth = np.tile(np.linspace(1, 1000, 160), (120, 1))
    depth[:, :20] = 0  # not known
    np.save(tmp_path / "room.npy", depth)
    Image.fromarray(depth.astype(np.uint16)).save(tmp_path / "depth.png")
    for map_of in ("room.npy", "depth.png"):
        out = tmp_path / f"out_{map_of}"
        counts = make_jigsaws(
            [str(tmp_path / "room.png")], out=str(out), of="depth", depths=[str(tmp_path / map_of)], pieces=3, copies=2, seed=4
        )
        assert counts == {"prompts": 2, "broken": 0}
        (file,), order = media(out, 0, "image")
        red = np.array(Image.open(file)).astype(int)
        marked = (red[..., 0] > 200) & (red[..., 1] < 60)
        columns = np.flatnonzero(marked.any(0))
        assert sorted(order) == [1, 2, 3] and columns.min() > 20 - 7
    again = tmp_path / "again"
    make_jigsaws([str(tmp_path / "room.png")], out=str(again), of="depth", depths=[str(tmp_path / "room.npy")], pieces=3, copies=2, seed=4)
    assert (again / "prompts.jsonl").read_text() == (tmp_path / "out_room.npy" / "prompts.jsonl").read_text()


def test_the_order_of_points_is_that_of_their_depths(tmp_path):
    Image.fromarray(np.zeros((120, 160, 3), dtype=np.uint8)).save(tmp_path / "room.png")
    far = np.tile(np.linspace(900, 10, 160), (120, 1))
    np.save(tmp_path / "room.npy", far)
    places = []

    class Watched(Random):
        def randrange(self, stop):
            places.append(super().randrange(stop))
            return places[-1]

    (_,), order = _points(str(tmp_path / "room.png"), str(tmp_path / "room.npy"), Watched(1), 2)
    first, last = far[places[0], places[1]], far[places[-2], places[-1]]  # two points: the first drawn, and the last one taken
    assert order == ([1, 2] if first < last else [2, 1])


def test_a_broken_file_is_left_out_and_counted(image, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(b"no image")
    image[0].rename(tmp_path / "files" / "b.png")
    config = tmp_path / "jigsaws.yaml"
    config.write_text(f"{{use: make_jigsaws, files: [{tmp_path / 'files'}], out: {tmp_path / 'out'}, grid: [2, 2]}}")
    done = CliRunner().invoke(app, ["pairs", str(config)])
    assert done.exit_code == 0 and "1 prompts, 1 broken" in done.output, done.output


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": (1, 1)}, r"1 pieces.*2 pieces or more"),
        ({"of": "depth"}, r"0 depths of 1 images"),
        ({"of": "video", "trim": 0.5}, r"trim=0\.5"),
        ({"grid": (9, 9)}, r"none of 1 files could be used"),
    ],
)
def test_mistakes_leave_nothing(image, tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        make_jigsaws([str(image[0])], out=str(tmp_path / "out"), **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png"]
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out: .* is there already"):
        make_jigsaws([str(image[0])], out=str(tmp_path / "out"))
