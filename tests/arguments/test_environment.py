"""What a config reads of the environment is used, and never written down or said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmalign as mm
from mmalign.arguments import environment
from mmalign.config import build_part, external_code, load
from mmalign.types import UserError

KEY = "sk-not-for-anybody-0123456789"

MODULE = """
seen = []


def bright(*, key, model="small", fails=False):
    seen.append((key, model))

    def score(outputs, prompts):
        if fails:
            raise RuntimeError(f"401 for Bearer {key}")
        return outputs.flatten(1).mean(1)

    return score
"""
CONFIG: dict[str, Any] = {
    "use": "online",
    "policy": {"use": "diffusers", "pipeline": {"use": "digits"}, "schedule": {"steps": 2}, "device": "cpu"},
    "method": {"use": "flow_grpo"},
    "prompts": {"use": "digit_prompts", "count": 2},
    "rewards": {"bright": {"use": "serviced.bright", "key": "${oc.env:MY_SERVICE_KEY}", "model": "${oc.env:MY_MODEL,tiny}"}},
    "steps": 1,
    "batch": {"prompts": 2, "group": 2},
    "evaluation": {"every": 1, "samples": 1, "call": {"num_inference_steps": 2}},
    "run": {"name": "kept"},
}


@pytest.fixture
def folder(tmp_path: Path, write_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "_WRITTEN", {})
    write_module("serviced.py", MODULE)
    write_module("c.yaml", yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_SERVICE_KEY", KEY)
    return tmp_path


def test_a_run_keeps_what_was_written(folder: Path, mmalign: Callable[..., Any]) -> None:
    done = mmalign("train", "c.yaml")
    assert done.code == 0 and KEY not in done.out + done.err, done.err
    import serviced  # type: ignore[import-not-found]

    assert serviced.seen == [(KEY, "tiny")]
    run = folder / "runs" / "kept"
    assert yaml.safe_load((run / "config.yaml").read_text())["rewards"]["bright"] == {
        "use": "serviced.bright",
        "key": "${oc.env:MY_SERVICE_KEY}",
        "model": "tiny",
    }
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 6 and any("tensorboard" in str(path) for path in files) and (run / "report.html") in files
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []
    assert [one.name for one in external_code(yaml.safe_load((run / "config.yaml").read_text()))] == [
        "serviced.bright",
        "${oc.env:MY_SERVICE_KEY} of the environment",
    ]
    assert mmalign("train", "c.yaml", "--resume").code == 0 and serviced.seen[1:] == [(KEY, "tiny")]
    done = mmalign("eval", "kept", "--trust")
    assert done.code == 0 and serviced.seen[2:] == [(KEY, "tiny")], done.err


def test_lines_are_masked(folder: Path, mmalign: Callable[..., Any]) -> None:
    done = mmalign("train", "c.yaml", "rewards.bright.fails=true")
    assert done.code == 2 and KEY not in done.err and "401 for Bearer ${oc.env:MY_SERVICE_KEY}" in done.err
    done = mmalign("check", "c.yaml", "steps=${oc.env:MY_SERVICE_KEY}")
    assert (done.code, done.err) == (2, "steps: got '${oc.env:MY_SERVICE_KEY}', takes int\n")
    from mmalign.runs.progress import Progress

    lines = folder / "lines"
    with open(lines, "w") as stream:
        Progress(3, stream=stream).say(f"refused: {KEY}")
    assert lines.read_text() == "refused: ${oc.env:MY_SERVICE_KEY}\n"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "MY_SECRET", "DB_PASSWORD", "APIKEY_OF", "WANDB_API_KEY"])
def test_a_key_of_the_environment_in_python_is_written_as_the_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KEY)
    assert environment.as_written({"a": [f"Bearer {KEY}", KEY, 3]}) == {"a": [f"Bearer ${{oc.env:{name}}}", f"${{oc.env:{name}}}", 3]}
    monkeypatch.delenv(name)
    monkeypatch.setenv("MONKEY_HABITAT", KEY)
    assert environment.as_written(KEY) == KEY


def test_a_python_run_writes_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_KEY", KEY)
    from mmalign.arguments import calls

    made = calls.Made("online", {"rewards": {"a": mm.rewards.novelty(scale=0.5)}, "call": {"negative_prompt": KEY}})
    with calls.saying(made):
        assert calls.described()["call"] == {"negative_prompt": "${oc.env:MY_SERVICE_KEY}"}


def test_parts_of_a_kept_config_read_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"use": "online", "rewards": {"bright": {"use": "serviced.bright", "key": "${oc.env:MY_SERVICE_KEY}"}}}
    build_part(kept, "rewards")
    import serviced

    assert serviced.seen == [(KEY, "small")]
    monkeypatch.delenv("MY_SERVICE_KEY")
    with pytest.raises(UserError, match=r"rewards\.bright\.key: .*'MY_SERVICE_KEY' not found"):
        build_part(kept, "rewards")
    with pytest.raises(UserError, match=r"rewards\.bright\.key: .*'MY_SERVICE_KEY' not found"):
        load("c.yaml")


def test_short_values_are_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_MODEL", "big")
    load("c.yaml")
    assert environment.as_written({"model": "big", "prompt": "a big dog"}) == {"model": "${oc.env:MY_MODEL,tiny}", "prompt": "a big dog"}
    assert environment.masked("a big dog") == "a big dog"
