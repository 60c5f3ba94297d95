from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import files
from mmalign.runs import checkpoint, folder, metrics, pictures
from mmalign.types import UserError

CONFIG = {"seed": 3, "steps": 40, "method": {"use": "flow_grpo", "clip": 1e-4}, "rewards": {"proxy": {"use": "digits"}}}


def line(step: int, phase: str = "train", **metrics: float) -> str:
    return json.dumps({"step": step, "phase": phase, "seconds": 0.1 * step, **metrics}) + "\n"


def started(root, rows: str = "", steps: tuple[int, ...] = ()):
    run = folder.open_run(root, "a", config=CONFIG)
    run.metrics.write_text(rows)
    for step in steps:
        checkpoint.save(run.checkpoints, step, tensors={"trained": {"w": torch.ones(2)}}, state={"step": step})
    return run


def test_a_new_run_holds_config_and_versions(tmp_path):
    run = folder.open_run(tmp_path, "a", config=CONFIG)
    assert folder.read_config(run.path) == CONFIG
    versions = json.loads((run.path / "versions.json").read_text())
    assert versions["torch"] and versions["mmalign"]
    assert run.checkpoint is None and run.metrics.is_file()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/x"])
def test_a_name_is_one_folder(tmp_path, name):
    with pytest.raises(UserError, match="name"):
        folder.open_run(tmp_path, name, config=CONFIG)


def test_an_existing_run_is_not_overwritten(tmp_path):
    run = started(tmp_path, line(0))
    with pytest.raises(UserError, match="resume"):
        folder.open_run(tmp_path, "a", config=CONFIG)
    assert run.metrics.read_text() == line(0)


def test_an_empty_folder_is_no_run(tmp_path):
    (tmp_path / "a").mkdir()
    folder.open_run(tmp_path, "a", config=CONFIG)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match="no run here"):
        folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    assert not (tmp_path / "a").exists()


def test_resume_cuts_the_log_and_samples_after_the_checkpoint(tmp_path):
    kept = line(0, "eval", gold=0.5) + line(1, reward=0.1) + line(2, reward=0.25) + line(2, "eval", gold=0.6)
    run = started(tmp_path, kept + line(3, reward=0.3) + '{"step": 4, "phase": "tr', steps=(2,))
    for step in (0, 2, 3):
        run.write_samples(step, torch.rand(2, 3, 1, 8, 8))
        run.write_scores(step, {"gold": torch.rand(2, 3)})
    again = folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    assert again.metrics.read_text() == kept
    assert again.checkpoint == run.checkpoints / "step_000002"
    assert [n for n in again.notes if "torn" in n]
    assert sorted(p.name for p in again.samples.glob("*.png")) == ["step_000000.png", "step_000002.png"]
    assert sorted(p.name for p in again.samples.glob("*.json")) == ["step_000000.json", "step_000002.json"]


def test_resume_without_a_checkpoint_starts_again(tmp_path):
    started(tmp_path, line(0) + line(1))
    again = folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    assert again.checkpoint is None and again.metrics.read_text() == "" and "beginning" in again.notes[0]


def test_resume_passes_over_a_damaged_checkpoint(tmp_path):
    run = started(tmp_path, line(1) + line(2) + line(3), steps=(1, 2))
    weights = run.checkpoints / "step_000002" / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    again = folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    assert again.checkpoint is not None and again.checkpoint.name == "step_000001"
    assert "damaged" in again.notes[0] and again.metrics.read_text() == line(1)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(tmp_path):
    run = started(tmp_path, line(1) + line(2), steps=(1, 2))
    for file in run.checkpoints.rglob("trained.safetensors"):
        file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"no checkpoint can be read.*\(step_000002: damaged \(train.*; step_000001: damaged \(.*; give"):
        folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    assert run.metrics.read_text() == line(1) + line(2)


@pytest.mark.parametrize("how", ["ended", "far"])
def test_a_run_whose_checkpoints_are_gone_is_not_started_again_over_its_log(tmp_path, how):
    config = {**CONFIG, "run": {"checkpoint_every": 1}}
    run = folder.open_run(tmp_path, "a", config=config)
    run.metrics.write_text(line(1) + (line(2) if how == "far" else ""))
    if how == "ended":
        files.write_json(run.summary, {"status": "interrupted"})
    with pytest.raises(UserError, match=r"its checkpoints are gone \(its log goes to step [12]\)"):
        folder.open_run(tmp_path, "a", config=config, resume=True)
    assert run.metrics.read_text().startswith(line(1))


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("made", [(), ("samples",), ("samples", "checkpoints", "versions.json"), ("metrics.jsonl", ".config.yaml.17.tmp")])
def test_a_folder_whose_making_was_interrupted_is_free(tmp_path, resume, made):
    for name in made:
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("") if "." in name else (tmp_path / "a" / name).mkdir()
    (tmp_path / "a").mkdir(exist_ok=True)
    run = folder.open_run(tmp_path, "a", config=CONFIG, resume=resume)
    assert run.checkpoint is None and folder.read_config(run.path) == CONFIG and not list(run.path.glob(".*.tmp"))
    assert len(run.notes) == bool(made or resume)


def test_a_log_that_is_a_link_to_itself_is_a_line(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").symlink_to("metrics.jsonl")
    for resume in (False, True):
        with pytest.raises(UserError):
            folder.open_run(tmp_path, "a", config=CONFIG, resume=resume)


@pytest.mark.parametrize("there", ["notes.txt", "config.yaml", "samples/step_000000.png", "metrics.jsonl"])
def test_a_folder_with_anything_else_in_it_is_not(tmp_path, there):
    (tmp_path / "a" / "samples").mkdir(parents=True)
    (tmp_path / "a" / there).write_text("{}\n")
    with pytest.raises(UserError, match="exists"):
        folder.open_run(tmp_path, "a", config=CONFIG)
    assert (tmp_path / "a" / there).read_text() == "{}\n"


def test_resume_removes_what_a_killed_process_left(tmp_path):
    run = started(tmp_path, line(1) + line(2), steps=(1, 2))
    (run.checkpoints / ".step_000003.77.tmp").mkdir()
    (run.checkpoints / ".step_000000.gone").mkdir()
    (run.checkpoints / "step_000002").rename(run.checkpoints / ".step_000002.old")  # killed between the two names of a swap
    (run.path / "answers" / "images").mkdir(parents=True)
    strays = [
        ".summary.json.77.tmp",
        "samples/.step_000002.png.77.tmp",
        "answers/.step_000002.jsonl.77.tmp",
        "answers/images/.a.png.77.tmp",
    ]
    for stray in strays:
        (run.path / stray).write_text("")
    (run.path / ".mine.tmp").write_text("")
    again = folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    assert again.checkpoint == run.checkpoints / "step_000002"
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_000001", "step_000002"]
    assert [path.name for path in run.path.rglob(".*")] == [".mine.tmp"]


@pytest.mark.parametrize("text", ["[1, 2", "- a list", "", "a: " + "[" * 5000, "\udcff"])
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, text):
    started(tmp_path, steps=(2,)).config.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config.yaml: (cannot be read|holds no mapping)") as caught:
        folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    started(tmp_path, steps=(2,)).metrics.unlink()
    (tmp_path / "a" / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot be opened: .*metrics.jsonl"), folder.opened(tmp_path, "a", config=CONFIG, resume=True):
        pass


def test_a_file_in_the_way_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/a: cannot be made: .*; give this run another name"):
        folder.opened(tmp_path / "runs", "a", config=CONFIG).__enter__()


def test_an_open_run_is_nobody_elses(tmp_path):
    first, second = folder.opened(tmp_path, "a", config=CONFIG), folder.opened(tmp_path, "a", config=CONFIG, resume=True)
    with first, pytest.raises(UserError, match="another process trains there"), second:
        pass
    with folder.opened(tmp_path, "a", config=CONFIG, resume=True) as run:
        assert run.path == tmp_path / "a"
    with pytest.raises(UserError, match="no run here"), folder.opened(tmp_path, "b", config=CONFIG, resume=True):
        pass
    assert not (tmp_path / "b").exists()


def test_what_changes_no_number_may_differ_and_is_said(tmp_path):
    started(tmp_path, steps=(2,))
    run = folder.open_run(tmp_path, "a", config={**CONFIG, "memory": {"rows": 3}}, resume=True, may_differ=("memory.*",))
    assert run.notes == (f"{tmp_path / 'a'}: goes on although memory.rows was '(absent)', is 3",)


def test_resume_may_only_grow_steps(tmp_path):
    started(tmp_path, steps=(2,))
    folder.open_run(tmp_path, "a", config={**CONFIG, "steps": 80}, resume=True)
    with pytest.raises(UserError, match="steps was 80, is 40"):
        folder.open_run(tmp_path, "a", config=CONFIG, resume=True)
    with pytest.raises(UserError, match=r"method\.clip was 0\.0001, is 0\.1; seed was 3, is '\(absent\)'"):
        folder.open_run(
            tmp_path, "a", config={"steps": 80, "rewards": CONFIG["rewards"], "method": {"use": "flow_grpo", "clip": 0.1}}, resume=True
        )
    folder.open_run(tmp_path, "a", config={**CONFIG, "steps": 80, "trackers": ["wandb"]}, resume=True, may_differ=("trackers",))


def test_config_of_objects_becomes_names(tmp_path):
    config = {"rewards": {"f": torch.sigmoid, "g": line}, "path": tmp_path, "betas": (0.9, 0.95), "size": torch.Size([2])}
    run = folder.open_run(tmp_path, "a", config=config)
    assert folder.read_config(run.path)["rewards"]["g"].endswith("test_folder.line")
    folder.open_run(tmp_path, "a", config=config, resume=True)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = files.write_json(tmp_path / "summary.json", {"a": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, moment, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_json_knows_no_nan(tmp_path):
    path = files.write_json(tmp_path / "s.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": float("-inf")}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": {"d": None}}


def test_grid_places_rows_and_columns(tmp_path):
    images = torch.zeros(2, 3, 1, 8, 8)
    images[1, 2] = 1.0
    image = pictures.grid(images)
    assert image.shape == (4, 2 * 9, 3 * 9)
    path = pictures.write_png(tmp_path / "g.png", image)
    read = np.asarray(Image.open(path))
    assert (read[9:17, 18:26] == 255).all()
    assert read[:9, :, :3].sum() == 0 and (read[8, :, 3] == 0).all() and (read[0, 0] == [0, 0, 0, 255]).all()


def test_grid_survives_nan_and_refuses_other_shapes():
    assert pictures.grid(torch.full((1, 1, 3, 4, 4), float("nan")))[:3].sum() == 0
    with pytest.raises(UserError, match="rows, columns"):
        pictures.grid(torch.zeros(2, 3, 8, 8))


def test_a_grid_of_videos_is_an_animation_of_all_its_frames(tmp_path):
    videos = torch.rand(2, 3, 5, 1, 8, 8)
    frames = pictures.grid(videos)
    assert frames.shape == (5, 4, 2 * 9, 3 * 9)
    with Image.open(pictures.write_png(tmp_path / "g.png", frames)) as read:
        assert (read.n_frames, read.info["loop"], read.info["duration"]) == (5, 0, pictures.FRAME)
        for number, frame in enumerate(frames):
            read.seek(number)
            assert (np.asarray(read.convert("RGBA")) == frame.permute(1, 2, 0).numpy()).all()
            assert torch.equal(frame, pictures.grid(videos[:, :, number]))


def test_each_sample_is_a_file(tmp_path):
    images = torch.rand(2, 3, 3, 7, 9)
    where = pictures.write_each(tmp_path / "out", images, ["a", "b"], [5, 6, 7])
    assert sorted(path.name for path in where.iterdir()) == [f"{row:03d}_{seed}.png" for row in (0, 1) for seed in (5, 6, 7)] + [
        "prompts.json"
    ]
    assert json.loads((where / "prompts.json").read_text()) == {"prompts": ["a", "b"], "seeds": [5, 6, 7]}
    read = torch.from_numpy(np.asarray(Image.open(where / "001_6.png")).copy()).permute(2, 0, 1)
    assert torch.equal(read, (images[1, 1] * 255).round().byte())
    with pytest.raises(UserError, match="is there already"):
        pictures.write_each(where, images, ["a", "b"], [5, 6, 7])


def test_a_video_is_an_mp4_that_players_read(tmp_path):
    from mmalign.media import Limits, footage

    pytest.importorskip("av")
    shades = torch.linspace(0, 1, 5).view(1, 1, 5, 1, 1, 1).expand(1, 1, 5, 1, 17, 31)
    where = pictures.write_each(tmp_path / "out", shades, ["a"], [3])
    film = footage(where / "000_3.mp4", Limits(frames=8))
    assert film.frames.shape == (5, 3, 18, 32) and film.rate == 4
    assert torch.allclose(film.frames.float().mean((1, 2, 3)) / 255, torch.linspace(0, 1, 5), atol=0.03)


def test_a_large_grid_of_videos_is_scaled_down_and_keeps_its_frames(monkeypatch):
    monkeypatch.setattr(pictures, "FILM", 3 * 2 * 16 * 16)
    frames = pictures.grid(torch.full((2, 1, 3, 3, 32, 32), 0.5))
    assert frames.shape == (3, 4, 2 * 17, 17) and frames[:, :3].max() == 128


def test_read_metrics_keeps_numbers_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    odd = [
        '{"step": true, "phase": "eval"}',
        '{"step": -1, "phase": "eval"}',
        '{"step": 1, "phase": 3}',
        f'{{"step": {10**20}, "phase": "x"}}',
    ]
    odd += ['{"step": 1, "phase": "eval", "x": ' + "[" * 9999, '{"step": ' + "9" * 5000 + "}"]
    path.write_text(
        "\n".join([*odd, f'{{"step": 2, "phase": "eval", "a": "b", "c": [1], "d": {10**400}, "e": 1e999, "f": null, "g": 0.5}}'])
    )
    rows, notes = metrics.read_metrics(path)
    assert rows == [{"step": 2, "phase": "eval", "f": None, "g": 0.5}] and len(notes) == 6


def test_read_metrics_drops_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(0).encode() + b"[]\n" + line(1).encode() + b'{"step": 2, "phase": "train", "x": \xc3')
    rows, notes = metrics.read_metrics(path)
    assert [row["step"] for row in rows] == [0, 1] and len(notes) == 2
    assert metrics.read_metrics(tmp_path / "none.jsonl") == ([], [])


def test_numbers_that_contradict_a_run_are_refused_before_a_model_is_looked_for(tmp_path):
    """The model is nowhere, and no line says so; more steps, and what may differ, go on to where it is looked for."""
    from mmalign.cli.runs import train_config

    node = {
        "use": "offline", "policy": {"use": "transformers", "model": str(tmp_path / "gone"), "max_completion": 4}, "steps": 20,
        "records": {"use": "texts", "path": str(tmp_path / "gone.jsonl")}, "method": {"use": "dpo", "beta": 0.1},
        "batch": {"records": 4, "micro_rows": 2}, "run": {"name": "r", "folder": str(tmp_path)},
    }  # fmt: skip
    with folder.opened(tmp_path, "r", config=node):
        pass
    with pytest.raises(UserError, match=r"cannot resume with another config: method\.beta was 0\.1, is 0\.2; steps was 20, is 13;"):
        train_config({**node, "steps": 13, "method": {"use": "dpo", "beta": 0.2}}, resume=True)
    with pytest.raises(UserError, match="gone"):
        train_config({**node, "steps": 30, "batch": {"records": 4, "micro_rows": 4}}, resume=True)
