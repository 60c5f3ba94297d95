from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from PIL import Image

from mmalign.runs import answers, folder
from mmalign.runs.log import Log
from mmalign.types import UserError


def read(path):
    return [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_there_as_they_are_logged(tmp_path):
    with Log(tmp_path, trackers=()) as log:
        log.log(0, "eval", {"gold": 0.5, "proxy": torch.tensor(0.25, dtype=torch.float64)})
        assert read(tmp_path)[0].items() >= {"step": 0, "phase": "eval", "gold": 0.5, "proxy": 0.25}.items()
        log.log(1, "train", {"reward": float("nan"), "kl": float("inf"), "rows": 4})
        row = read(tmp_path)[1]
    assert row["reward"] is None and row["kl"] is None and row["rows"] == 4 and row["seconds"] >= 0


def test_a_resumed_log_continues_its_clock_and_its_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "phase": "train", "seconds": 1000.0}\n')
    with Log(tmp_path, trackers=()) as log:
        log.log(5, "train", {"reward": 1.0})
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == [4, 5] and rows[1]["seconds"] >= 1000.0


def test_a_cut_and_resumed_log_equals_a_straight_one(tmp_path):
    def go(path, first, last):
        with Log(path, trackers=()) as log:
            for step in range(first, last):
                log.log(step, "train", {"reward": step / 7})

    for name in ("straight", "resumed"):
        (tmp_path / name).mkdir()
    go(tmp_path / "straight", 0, 8)
    go(tmp_path / "resumed", 0, 5)
    folder.truncate_metrics(tmp_path / "resumed" / "metrics.jsonl", 2)
    go(tmp_path / "resumed", 3, 8)
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in read(tmp_path / name)] for name in ("straight", "resumed")]
    assert strip[0] == strip[1]


def test_a_metric_is_one_number(tmp_path):
    with Log(tmp_path, trackers=()) as log, pytest.raises(UserError, match=r"metrics\['reward'\]: got shape \[2\]"):
        log.log(0, "train", {"reward": torch.zeros(2)})
    assert read(tmp_path) == []


def test_tensorboard_through_accelerate(tmp_path):
    pytest.importorskip("tensorboard")
    with Log(tmp_path, trackers=("tensorboard",), config={"seed": 1, "method": {"clip": 0.1}, "none": None}) as log:
        log.log(3, "train", {"reward": 0.5, "kl": float("nan")})
    log.close()  # a second time does nothing
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "train/kl" not in events.Tags()["scalars"]
    assert [(event.step, event.value) for event in events.Scalars("train/reward")] == [(3, 0.5)]


def test_a_tracker_without_its_package_costs_one_line(tmp_path, monkeypatch):
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [])
    lines: list[str] = []
    with Log(tmp_path, trackers=("wandb",), tell=lines.append) as log:
        log.log(0, "train", {"reward": 1.0})
    assert len(lines) == 1 and "wandb" in lines[0] and len(read(tmp_path)) == 1


def test_trackers_get_what_is_known_and_the_settings_once(tmp_path, monkeypatch):
    import accelerate.tracking

    class Recorder:
        requires_logging_directory = False
        seen: ClassVar[list] = []

        def __init__(self, title, **options):
            self.seen.append(("init", title, options))

        def start(self):
            self.seen.append("start")

        def store_init_configuration(self, values):
            self.seen.append(values)

        def log(self, values, step):
            self.seen.append((step, values))

        def finish(self):
            self.seen.append("finish")

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["wandb"])
    for step in (1, 2):
        with Log(tmp_path, trackers={"wandb": {"mode": "offline"}}, config={"a": {"b": [1]}}) as log:
            log.log(step, "train", {"reward": 0.5, "kl": float("nan")})
    begin, end = [("init", "mmalign", {"name": tmp_path.name, "mode": "offline"}), "start"], "finish"
    logged = [(step, {"train/reward": 0.5}) for step in (1, 2)]
    assert Recorder.seen == [*begin, {"a.b": "[1]"}, logged[0], end, *begin, logged[1], end]


def test_where_a_run_is_found_in_trackers(tmp_path, monkeypatch):
    import sys

    import accelerate.tracking

    class Offline:
        @property
        def url(self):
            raise ValueError("not online")

    run = SimpleNamespace(info=SimpleNamespace(experiment_id="7", run_id="ab"))
    space, local = (SimpleNamespace(url=url, project="a b") for url in ("me/space", "http://127.0.0.1:7860/"))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(get_tracking_uri=lambda: "http://there:5000/"))
    known = {
        "wandb": (SimpleNamespace(url="https://there/runs/1"), "https://there/runs/1"),
        "comet_ml": (SimpleNamespace(url="javascript:alert(1)"), None),
        "swanlab": (Offline(), None),
        "clearml": (SimpleNamespace(get_output_log_web_page=lambda: "https://c/1"), "https://c/1"),
        "mlflow": (run, "http://there:5000/#/experiments/7/runs/ab"),
        "trackio": (space, "https://huggingface.co/spaces/me/space?project=a%20b"),
        "aim": (SimpleNamespace(url="https://aim"), None),
    }
    acts = dict.fromkeys(("__init__", "start", "log", "finish"), lambda self, *args, **kwargs: None)
    for name, (inside, _) in known.items():
        maker = type(name, (), {"requires_logging_directory": False, "tracker": inside, **acts})
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, maker)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: list(known))
    with Log(tmp_path / "all", trackers=list(known)):
        pass
    assert json.loads((tmp_path / "all" / "trackers.json").read_text()) == {name: at for name, (_, at) in known.items() if at}
    monkeypatch.setattr(accelerate.tracking.LOGGER_TYPE_TO_CLASS["trackio"], "tracker", local)
    with Log(tmp_path / "local", trackers=["trackio", "swanlab"]) as log:
        log.log(0, "train", {"reward": 1.0})
    assert not (tmp_path / "local" / "trackers.json").exists() and len(read(tmp_path / "local")) == 1


@pytest.mark.parametrize("when", ["__init__", "start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_costs_one_line(tmp_path, monkeypatch, when):
    import accelerate.tracking

    class Error(Exception):
        pass

    def act(self, *args, **kwargs):
        pass

    def fail(self, *args, **kwargs):
        raise Error("no\nnetwork")

    names = ("__init__", "start", "store_init_configuration", "log", "finish")
    good, bad = (
        type("Tracker", (), {"requires_logging_directory": False, **dict.fromkeys(names, act), **more}) for more in ({}, {when: fail})
    )
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", bad)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", good)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["wandb", "trackio"])
    lines: list[str] = []
    with Log(tmp_path, trackers=("wandb", "trackio"), config={"a": 1}, tell=lines.append) as log:
        for step in (1, 2):
            log.log(step, "train", {"reward": 0.5})
    assert lines == ["trackers: wandb failed, going on without it (Error: no network)"] and [row["step"] for row in read(tmp_path)] == [
        1,
        2,
    ]


@pytest.mark.parametrize("frames", [(), (3,)])
def test_tensorboard_shows_samples(tmp_path, frames):
    pytest.importorskip("tensorboard")
    images = torch.zeros(1, 2, *frames, 1, 8, 8)
    images[0, 1] = torch.linspace(0, 1, 3).view(3, 1, 1, 1) if frames else 1.0
    with Log(tmp_path, trackers=("tensorboard",)) as log:
        log.show(7, images)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("eval/samples")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert event.step == 7 and picture.size == (18, 9) and getattr(picture, "n_frames", 1) == (3 if frames else 1)
    picture.seek(getattr(picture, "n_frames", 1) - 1)
    shown = picture.convert("RGB")
    assert [shown.getpixel(at) for at in ((0, 0), (9, 0), (8, 0))] == [(0, 0, 0), (255, 255, 255), (255, 255, 255)]  # a gap is white


def test_tensorboard_is_given_answers_as_a_table(tmp_path):
    pytest.importorskip("tensorboard")
    columns, rows = answers.table(["Is a | b?", "Two\nlines?"] * 40, ["Yes.", "No."] * 40, {"gold": torch.tensor([[0.5, math.nan]] * 40)})
    assert columns == ["prompt", "answer", "gold"] and len(rows) == answers.SHOWN and rows[0] == ["Is a | b?", "Yes.", 0.5]
    with Log(tmp_path, trackers=("tensorboard",)) as log:
        log.tabulate(3, columns, rows[:2])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("eval/answers/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert event.step == 3 and lines[0] == "| prompt | answer | gold |" and len(lines) == 4
    assert lines[2:] == ["| Is a \\| b? | Yes. | 0.500 |", "| Two<br>lines? | No. | nan |"]


def test_a_tracker_that_fails_at_samples_keeps_its_numbers(tmp_path, monkeypatch):
    from mmalign.runs import log as module

    def fail(*_):
        raise ValueError("no codec")

    monkeypatch.setitem(module.SHOW, "tensorboard", fail)
    lines: list[str] = []
    with Log(tmp_path, trackers=("tensorboard",), tell=lines.append) as log:
        for step in (1, 2):
            log.show(step, torch.zeros(1, 1, 1, 8, 8))
            log.log(step, "eval", {"gold": 0.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert lines == ["trackers: tensorboard takes no samples, going on with numbers (ValueError: no codec)"]
    assert len(EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("eval/gold")) == 2


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trackers: got 'wanbd', takes .*tensorboard"):
        Log(tmp_path, trackers=("wanbd",))


def test_a_tracker_that_cannot_be_reached_costs_one_line(tmp_path, monkeypatch):
    """Samples come before numbers: what is down for the one is down for the other, and is asked for neither again."""
    from mmalign.runs import log as module

    def unreachable(*_):
        raise ConnectionError("no network")

    monkeypatch.setitem(module.SHOW, "tensorboard", unreachable)
    lines: list[str] = []
    with Log(tmp_path, trackers=("tensorboard",), tell=lines.append) as log:
        for step in (1, 2):
            log.show(step, torch.zeros(1, 1, 1, 8, 8))
            log.log(step, "eval", {"gold": 0.5})
    assert lines == ["trackers: tensorboard failed, going on without it (ConnectionError: no network)"]
