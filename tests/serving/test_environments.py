"""Rewards whose packages exclude each other, each on a server that the run starts in an environment of its own, and ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
import warnings
import zipfile
from pathlib import Path

import pytest

import mmalign as mm
from mmalign.serving import started
from mmalign.serving.environments import WHOLE, environment, name_of
from mmalign.types import UserError
from mmalign.worlds.text import base
from tests.helpers.processes import together

pytest.importorskip("uvicorn", reason="the extra serve is not installed")


def wheel(folder: Path, version: str) -> None:
    """``paint`` of a version, as pip takes it."""
    folder.mkdir(exist_ok=True)
    about = f"paint-{version}.dist-info"
    with zipfile.ZipFile(folder / f"paint-{version}-py3-none-any.whl", "w") as file:
        file.writestr("paint.py", f"VERSION = {version!r}\n")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: paint\nVersion: {version}\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


def reward(folder: Path, version: str) -> None:
    """A reward that needs ``paint`` of one version, with its requirements and its server's config beside it: letters times the version."""
    place = folder / f"by_{version[0]}"
    place.mkdir()
    (folder / f"painted_{version[0]}.py").write_text(
        f"import paint\n\ndef score(outputs, prompts):\n    assert paint.VERSION == {version!r}\n"
        "    print('a line of its own')\n    return [float(paint.VERSION) * len(output) for output in outputs]\n"
    )
    (place / "requirements.txt").write_text(f"--no-index\n--find-links ../wheels\npaint=={version}\n")
    (place / "server.yaml").write_text(f"rewards: {{it: {{use: painted_{version[0]}.score}}}}\nrequirements: requirements.txt\n")


def test_two_rewards_whose_packages_exclude_each_other_in_one_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMALIGN_ENVIRONMENTS", str(tmp_path / "environments"))
    for version in ("1.0", "2.0"):
        wheel(tmp_path / "wheels", version)
        reward(tmp_path, version)
    asking = {"failures": 1, "retries": 0, "backoff": 0.0}
    rewards = {
        name: mm.rewards.served(start={"config": f"by_{number}/server.yaml", "restarts": 1}, asking=asking)
        for name, number in (("one", 1), ("two", 2))
    }
    seen = []

    def letters(outputs, prompts):
        seen.append(list(outputs))
        if len(seen) in (1 + 3, 1 + 4):  # an evaluation first; once it is started again, and not twice
            os.kill(rewards["two"].state.address.pid, signal.SIGKILL)
        return [float(len(output)) for output in outputs]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = mm.online(
            mm.policies.transformers(*base.untrained(width=16, layers=1), max_completion=8), mm.worlds.text_prompts(count=8),
            {"letters": letters, **rewards}, mm.methods.grpo(beta=0.0), steps=4,
            combine=mm.combinations.weighted_sum(weights={"letters": 1.0, "one": 1.0, "two": 1.0}, missing="rest", required=["one"]),
            batch={"prompts": 2, "group": 4, "missing": "drop"}, evaluation={"every": 9, "prompts": ["the"], "samples": 2},
            run={"folder": str(tmp_path / "runs"), "trackers": []},
        )  # fmt: skip
    rows = [row for row in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines()) if row["phase"] == "train"]
    assert [row.get("missing/two", 0) for row in rows] == [0, 0, 0, 8] and not any("missing/one" in row for row in rows)
    assert all(row["reward/one"] == pytest.approx(row["reward/letters"]) for row in rows)
    assert [row["reward/two"] for row in rows] == [pytest.approx(2 * row["reward/letters"]) for row in rows[:3]] + [None]
    said = capfd.readouterr().err
    assert said.count("making its environment") == 2 and said.count("serving http://127.0.0.1:") == 3
    assert said.count("its server has ended by itself; starting it again, 1 of 1") == 1
    assert rewards["two"].state.dump()["restarted"] == 1 and rewards["one"].state.dump()["restarted"] == 0
    alive = rewards["one"].state.address.pid
    rewards.clear()
    del run, letters
    gc.collect()
    with pytest.raises(ProcessLookupError):  # it ended with who asked it
        os.kill(alive, 0)


def test_an_environment_is_made_once_and_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_ENVIRONMENTS", str(tmp_path / "environments"))
    wheel(tmp_path / "wheels", "1.0")
    file, lines = tmp_path / "requirements.txt", []
    file.write_text("--no-index\nwheels/paint-1.0-py3-none-any.whl\n")
    first = name_of(file)
    wheel(tmp_path / "wheels", "1.0.1")
    assert name_of(file) == first
    with zipfile.ZipFile(tmp_path / "wheels" / "paint-1.0-py3-none-any.whl", "a") as more:
        more.writestr("paint_more.py", "")
    assert name_of(file) != first  # of what it names
    file.write_text("--no-index\nno-such-package-anywhere==3\n")
    with pytest.raises(UserError, match=r"requirements: pip cannot install .*requirements\.txt: .*no-such-package-anywhere"):
        environment(file, lines.append)
    place = tmp_path / "environments" / name_of(file)
    assert not place.exists() and lines[0].endswith(str(place))
    with pytest.raises(UserError, match="requirements: no such file"):
        environment(tmp_path / "other.txt", lines.append)
    place.mkdir()
    (place / WHOLE).write_text("")
    lines.clear()
    assert environment(file, lines.append) == place and lines == []  # nothing is done where it is whole


def test_a_server_that_does_not_start_says_why(tmp_path):
    (tmp_path / "server.yaml").write_text("rewards: {it: {use: lenght}}\n")
    reward = mm.rewards.served(start={"config": str(tmp_path / "server.yaml")})
    with pytest.raises(UserError, match=r"the server of .*server\.yaml did not start: rewards\.it\.use: got 'lenght', .*nearest: length"):
        reward(["x"], ["p"])


def test_processes_of_a_run_share_the_server_that_the_first_of_them_starts(tmp_path, monkeypatch):
    class Owner: ...

    def fake(owner, name, start, say):  # what starts one, without the server
        address = started.Address(f"http://127.0.0.1:{os.getpid()}", "token", os.getpid())
        (tmp_path / f"started-{os.getpid()}").touch()
        return started._Process(None, tmp_path / "log", address)

    def act(rank: int) -> None:
        owner = Owner()
        address = started.started(owner, "it", started.Start(config="x.yaml"), print)
        (tmp_path / f"told-{rank}").write_text(address.url)
        while len(list(tmp_path.glob("told-*"))) < 2:  # whoever started it stays until the other knows
            time.sleep(0.01)

    monkeypatch.setattr(started, "_start", fake)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "processes").mkdir()
    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    assert len(list(tmp_path.glob("started-*"))) == 1
    assert (tmp_path / "told-0").read_text() == (tmp_path / "told-1").read_text()
