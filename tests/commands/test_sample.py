"""The whole way through the command line on a small real pipeline: train, stop, resume, sample, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mmalign.commands.sample import sample
from mmalign.runs import checkpoint
from mmalign.types import UserError
from tests.helpers.small_run import online

MODULE = """
import os
import signal

import torch
from mmalign.worlds.digits.base import untrained


def pipeline():
    pipe = untrained("dit")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in pipe.transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return pipe


def bright():
    return lambda outputs, prompts: outputs.flatten(1).mean(1)


def signalled(name):
    calls = []

    def reward(outputs, prompts):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.Signals[name])
        return outputs.flatten(1).mean(1)
    return reward


def broken():
    def judge(outputs, prompts):
        raise RuntimeError("no model")
    return judge
"""

CONFIG: dict[str, Any] = {
    "use": "online",
    "policy": {"use": "diffusers", "pipeline": {"use": "mine.pipeline"}, "schedule": {"steps": 3}},
    "method": {"use": "flow_grpo", "ratio": "per_step", "clip": 0.2, "beta": 0.05, "std": "none"},
    "prompts": {"use": "digit_prompts", "count": 3},
    "rewards": {"bright": {"use": "mine.bright"}},
    "steps": 2,
    "batch": {"prompts": 2, "group": 2},
    "optimizer": {"use": "adamw", "rate": 0.01, "ema": 0.5},
    "evaluation": {"every": 1, "samples": 2, "prompts": ["a 7", "a 3"], "call": {"num_inference_steps": 4}},
    "run": {"name": "small", "trackers": []},
}


@pytest.fixture
def command(tmp_path: Path, write_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, mmalign: Any) -> Callable[..., Any]:
    """The command in this process: (exit code, stdout, stderr)."""
    write_module("mine.py", MODULE)
    write_module("c.yaml", yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    return mmalign


def pixels(path: Path) -> torch.Tensor:
    return torch.tensor(list(Image.open(path).convert("L").tobytes()))


def test_train_resume_and_sample_from_the_command_line(tmp_path: Path, command: Any) -> None:
    code, out, err = command("train", "c.yaml", "steps=1")
    assert code == 0, err
    code, out, err = command("train", "c.yaml", "--resume")
    assert code == 0 and "finished after 2 steps" in out, err
    run = tmp_path / "runs" / "small"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["preflight_difference"] == 0.0 and summary["steps"] == 2 and summary["bright_after"] != summary["bright_before"]
    pages = [f"step_{number:06d}.{kind}" for number in range(3) for kind in ("json", "png")]
    assert sorted(file.name for file in (run / "samples").iterdir()) == ["prompts.json", *pages]
    assert json.loads((run / "samples" / "prompts.json").read_text())["prompts"] == ["a 7", "a 3"]

    assert command("train", "c.yaml", "run.name=straight")[0] == 0
    resumed, straight = (checkpoint.load(tmp_path / "runs" / name / "checkpoints" / "step_000002")[0] for name in ("small", "straight"))
    assert resumed.keys() == straight.keys() == {"trained", "ref", "ema", "optimizer"}
    assert all(torch.equal(resumed[name][key], straight[name][key]) for name in resumed for key in straight[name])

    code, out, err = command("sample", "small", "--trust", "--count", "3")
    assert code == 0 and out == "samples: runs/small/samples/sampled_000002.png\n", err
    assert Image.open(run / "samples" / "sampled_000002.png").size == (3 * 9, 2 * 9)  # a row per evaluation prompt, a gap of one pixel
    code, _, err = command("sample", "small", "--trust", "--prompt", "a handwritten cat")
    assert (code, err) == (2, "prompt: got 'a handwritten cat', takes one digit, as a word or a numeral, such as 'a handwritten three'\n")

    one = sample(run, trust=True, prompts=["a 7"], count=2, seed=1, out=tmp_path / "one.png")
    again = sample(run, trust=True, prompts=["a 7"], count=2, seed=1, out=tmp_path / "again.png")
    other = sample(run, trust=True, prompts=["a 7"], count=2, seed=9, out=tmp_path / "other.png")
    second = Image.open(sample(run, trust=True, prompts=["a 7"], count=1, seed=2, out=tmp_path / "second.png"))
    assert Image.open(one).crop((9, 0, 18, 9)).tobytes() == second.tobytes() != Image.open(one).crop((0, 0, 9, 9)).tobytes()
    assert one == tmp_path / "one.png" and torch.equal(pixels(one), pixels(again)) and not torch.equal(pixels(one), pixels(other))


def test_the_ending_of_out_says_what_is_written(tmp_path: Path, command: Any) -> None:
    assert command("train", "c.yaml", "steps=1")[0] == 0
    code, out, err = command("sample", "small", "--prompt", "a 7", "--count", "2", "--out", "singles", "--trust")
    assert (code, out) == (0, "samples: singles\n"), err
    assert sorted(path.name for path in (tmp_path / "singles").iterdir()) == ["000_0.png", "000_1.png", "prompts.json"]
    assert Image.open(tmp_path / "singles" / "000_0.png").size == (8, 8)
    for name, why in (
        ("singles", "is there already"),
        ("a.mp4", "takes .png, a folder for an image"),
        ("a.jpg", "takes .png, a folder for an image"),
    ):
        code, _, err = command("sample", "small", "--out", name, "--trust")
        assert code == 2 and why in err.splitlines()[-1]


def test_samples_are_those_of_the_average_and_of_the_best_before_it(tmp_path: Path, command: Any) -> None:
    assert command("train", "c.yaml", "optimizer.ema=0.9", "optimizer.rate=0.05")[0] == 0
    run = tmp_path / "runs" / "small"
    (path,) = (run / "checkpoints").glob("step_000002")
    tensors, state = checkpoint.load(path)
    averaged = pixels(sample(run, trust=True, out=tmp_path / "ema.png"))
    checkpoint.save(run / "checkpoints", 3, tensors={**tensors, "best": tensors["ref"]}, state=state)
    best = pixels(sample(run, trust=True, out=tmp_path / "best.png"))
    checkpoint.save(run / "checkpoints", 4, tensors={name: tensors[name] for name in ("trained", "ref", "optimizer")}, state=state)
    trained = pixels(sample(run, trust=True, out=tmp_path / "trained.png"))
    checkpoint.save(run / "checkpoints", 5, tensors={"trained": tensors["ema"]}, state=state)
    assert torch.equal(averaged, pixels(sample(run, trust=True, out=tmp_path / "again.png")))
    assert not torch.equal(averaged, trained) and not torch.equal(averaged, best) and not torch.equal(best, trained)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_run_that_a_signal_ends_is_no_success(tmp_path: Path, command: Any, name: str, code: int) -> None:
    reward = f"rewards.bright={{use: mine.signalled, name: {name}}}"
    end = command("train", "c.yaml", reward)
    assert end.code == code and "interrupted after step 1 and saved; continue with --resume" in end.out, end.err
    assert command("train", "c.yaml", reward, "--resume").code == 0  # the last step of a run is a finished run


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_command_that_runs_in_one_process_says_so_once(command: Any, monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    code, _, err = command("report", "runs/nowhere")
    line = "report: a launcher has started 2 processes (WORLD_SIZE), and this command runs in one; takes no launcher\n"
    assert code == 2 and err == (line if rank == "0" else "")


def test_bad_judges_end_in_one_line_and_no_folder(tmp_path: Path, command: Any) -> None:
    code, _, err = command("train", "c.yaml", "evaluation.judges.gold.use=mine.broken")
    line = r"mine\.bright \(rewards\.bright\.use\)\njudge gold: raised RuntimeError: no model \(mine\.py, line \d+\)\n$"
    assert code == 2 and re.search(line, err) and err.count("\n") == 2
    assert not (tmp_path / "runs" / "small").exists()


def test_what_cannot_be_sampled_is_one_line(tmp_path: Path, write_module: Callable[[str, str], Path]) -> None:
    run = online(tmp_path, steps=1).path
    with pytest.raises(UserError, match="does not say how to build the policy"):
        sample(run, trust=True)
    write_module("mine.py", MODULE)
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(UserError, match=r"parameter set '.*': got other parameters than this policy trains"):
        sample(run, trust=True)
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(UserError, match=r"damaged .*, and there is no other; takes a run with a whole checkpoint"):
        sample(run, trust=True)
    with pytest.raises(UserError, match="no run there"):
        sample(tmp_path / "nowhere")
