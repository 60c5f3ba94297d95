"""Commands of several processes: the files of one, written by one, and how they stop together."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import mmalign as mm
from mmalign import cli
from mmalign.commands.compare import compare
from mmalign.commands.sample import guided_sample
from mmalign.config import build, load
from mmalign.records import Pair
from mmalign.runs import checkpoint
from mmalign.worlds.digits.base import digits
from mmalign.worlds.digits.data import PROMPTS
from tests.commands.test_sample import MODULE
from tests.helpers import tiny_text
from tests.helpers.processes import together

CONFIG: dict[str, Any] = {
    "use": "online",
    "policy": {"use": "diffusers", "pipeline": {"use": "theirs.pipeline"}, "schedule": {"steps": 2}},
    "method": {"use": "flow_grpo", "ratio": "per_step", "clip": 0.2, "beta": 0.05, "std": "none"},
    "prompts": {"use": "digit_prompts", "count": 3},
    "rewards": {"bright": {"use": "theirs.bright"}},
    "steps": 1,
    "batch": {"prompts": 2, "group": 2},
    "optimizer": {"use": "adamw", "rate": 0.01, "ema": 0.5},
    "evaluation": {"every": 9, "samples": 2, "prompts": ["a 7", "a 3", "a 1"], "call": {"num_inference_steps": 2}},
    "run": {"name": "small", "trackers": []},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run that was trained for a step, ``runs/small``."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "theirs.py").write_text(MODULE)
    (folder / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        patch.setattr("mmalign.recipes._run.build", lambda path: path)
        build(load("c.yaml", []))
        yield folder
        sys.modules.pop("theirs", None)


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def command(*words: str) -> None:
    """A command in this process, what it says in the files ``out`` and ``err`` of its rank."""
    for stream, number in (("out", 1), ("err", 2)):
        name = f"{stream}_{os.environ.get('RANK', 'one')}.txt"
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 (of a process that ends here)
    sys.argv = ["mmalign", *words]
    os.environ["COLUMNS"] = "200"
    try:
        cli.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def ended(folder: Path, count: int, *words: str, act: Callable[..., Any] = command) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of every process of a command."""

    def of_rank(rank: int) -> None:
        code = 0
        try:
            act(*words)
        except SystemExit as error:
            code = int(error.code or 0)  # type: ignore[call-overload]
        (folder / f"code_{rank}.txt").write_text(str(code))

    broken = [text for code, text in together(count, of_rank, folder / "processes") if code]
    assert not broken, broken
    return [
        (int((folder / f"code_{rank}.txt").read_text()), *((folder / f"{stream}_{rank}.txt").read_text() for stream in ("out", "err")))
        for rank in range(count)
    ]


def pixels(path: Path) -> torch.Tensor:
    return torch.tensor(list(Image.open(path).convert("L").tobytes()))


@contextmanager
def only_the_main_one_writes() -> Iterator[None]:
    """Nothing but process 0 may replace a file."""
    if os.environ["RANK"] != "0":
        os.replace = lambda *paths: pytest.fail(f"process {os.environ['RANK']} writes {paths}")  # type: ignore[assignment]
    yield


def test_samples_of_a_run_are_those_of_one_process(here: Path) -> None:
    mm.sample("runs/small", trust=True, count=2, out="one.png")
    (main, main_out, _), (code, silence, err) = ended(here, 2, "sample", "small", "--count", "2", "--trust", "--out", "two.png")
    assert (main, code, silence, err) == (0, 0, "", "") and main_out == "samples: two.png\n"
    one, two = pixels(here / "one.png"), pixels(here / "two.png")
    assert one.shape == two.shape and int((one - two).abs().max()) <= 1  # of 255: sums of another number of rows, rounded
    assert len(one.unique()) > 20
    (main, _, why), (code, _, silence) = ended(here, 2, "sample", "small", "--prompt", "a 7", "--trust")
    assert (main, code, silence) == (2, 2, "") and why == "prompts: got 1 for 2 processes; takes 2 or more, or fewer processes\n"


def test_a_run_s_own_evaluation_is_that_of_one_process(here: Path) -> None:
    from mmalign.commands._reevaluation import reevaluated

    alone = reevaluated("runs/small", trust=True)
    (main, main_out, err), (code, silence, _) = ended(here, 2, "eval", "small", "--trust")
    assert (main, code, silence) == (0, 0, ""), err
    cells = next(line.split("\t") for line in main_out.splitlines() if "bright" in line)
    shown = [f"{alone[name]['bright']:.3f} ± {alone[name]['bright_se']:.3f}" for name in ("ref", "ema")]
    assert [cell.strip() for cell in cells] == ["bright", *shown]


def test_a_checkpoint_that_is_another_one_on_one_machine(here: Path) -> None:
    (path,) = Path("runs/small/checkpoints").glob("step_*")
    tensors, state = checkpoint.load(path)

    (here / "elsewhere" / "runs" / "small").mkdir(parents=True)
    (here / "elsewhere" / "runs" / "small" / "config.yaml").write_text(Path("runs/small/config.yaml").read_text())
    other = {name: {key: value + 1 for key, value in table.items()} for name, table in tensors.items()}
    checkpoint.save(here / "elsewhere" / "runs" / "small" / "checkpoints", 1, tensors=other, state=state)
    line = "runs/small: checkpoint: process 1 has another than process 0; takes the same files and arguments in all of them"

    def of_rank(rank: int) -> None:
        os.chdir(here / "elsewhere" if rank else here)
        mm.sample("runs/small", trust=True, count=1)

    assert together(2, of_rank, here / "processes") == [(2, line), (2, line)]
    broken = {name: dict(list(table.items())[1:]) for name, table in tensors.items()}
    checkpoint.save(here / "elsewhere" / "runs" / "small" / "checkpoints", 2, tensors=broken, state=state)

    def of_another_model(rank: int) -> None:
        os.chdir(here / "elsewhere")
        mm.sample("runs/small", trust=True, count=1)

    (main, why), (code, _) = together(2, of_another_model, here / "processes")
    assert main == code == 2 and "got other parameters than this policy trains" in why


class Speaker:
    """Says yes to every other question; writes down what its process was asked."""

    sets = SimpleNamespace(shards=None, others={})

    def __init__(self, file: Path, after: Callable[[int], None] = lambda asked: None):
        self.file, self.after, self.asked = file, after, 0

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        yield

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
        words = [prompt[0]["content"][-1]["text"] for prompt in prompts]
        with open(self.file, "a") as file:
            file.write(" ".join(words) + "\n")
        self.asked += len(prompts)
        self.after(self.asked)
        return [f"Yes {seed % 97}" if word.endswith("1") else "No." for word, seed in zip(words, seeds, strict=True)]


def suite(folder: Path, count: int = 11) -> Any:
    for number in range(count):
        Image.new("RGB", (4, 4)).save(folder / f"{number}.png")
    rows = [{"question_id": n, "image": f"{n}.png", "text": f"{n} {n % 2}", "label": "yes" if n < 5 else "no"} for n in range(count)]
    (folder / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return mm.evaluation.pope(folder / "coco_pope_random.json", images=folder, resamples=50)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@pytest.mark.parametrize("count", [2, 4])
def test_a_benchmark_is_answered_in_batches_in_turn(count: int, tmp_path: Path) -> None:
    questions = suite(tmp_path)
    alone = mm.evaluate(Speaker(tmp_path / "asked"), questions, out=tmp_path / "one", batch=2, who="me")  # type: ignore[arg-type]

    def act(rank: int) -> None:
        with only_the_main_one_writes():
            results = mm.evaluate(Speaker(tmp_path / f"asked_{rank}"), questions, out=tmp_path / "many", batch=2, who="me")  # type: ignore[arg-type]
        assert results.scores.values == alone.scores.values and results.scores.counts == alone.scores.counts

    assert together(count, act, tmp_path / "processes") == [(0, "")] * count
    assert files(tmp_path / "one") == files(tmp_path / "many")
    rows = [(tmp_path / f"asked_{rank}").read_text().splitlines() for rank in range(count)]
    assert [len(lines) for lines in rows] == ([3, 3] if count == 2 else [2, 2, 1, 1])
    assert sorted(line for lines in rows for line in lines) == sorted((tmp_path / "asked").read_text().splitlines())
    words = [text for _, text in together(7, act, tmp_path / "processes")]
    assert set(words) == {"batches of 2 questions: got 6 for 7 processes; takes 7 or more, or fewer processes"}


def test_a_signal_to_one_of_them_keeps_what_all_have_answered(tmp_path: Path) -> None:
    questions = suite(tmp_path)
    mm.evaluate(Speaker(tmp_path / "asked"), questions, out=tmp_path / "one", batch=1)  # type: ignore[arg-type]

    def act(rank: int) -> None:
        after = lambda asked: signal.raise_signal(signal.SIGTERM) if (rank, asked) == (1, 2) else None  # noqa: E731
        with pytest.raises(KeyboardInterrupt):
            mm.evaluate(Speaker(tmp_path / "asked", after), questions, out=tmp_path / "many", batch=1)  # type: ignore[arg-type]

    assert together(2, act, tmp_path / "processes") == [(0, ""), (0, "")]
    assert len((tmp_path / "many" / "answers.jsonl").read_text().splitlines()) == 1 + 4
    asked = Speaker(tmp_path / "asked")
    mm.evaluate(asked, questions, out=tmp_path / "many", batch=1)  # type: ignore[arg-type]
    assert asked.asked == 7 and files(tmp_path / "one") == files(tmp_path / "many")


def test_what_fails_in_one_of_them_is_said_by_all(tmp_path: Path) -> None:
    questions = suite(tmp_path)

    def act(rank: int) -> None:
        def after(asked: int) -> None:
            if (rank, asked) == (1, 2):
                raise ZeroDivisionError("no such luck")

        mm.evaluate(Speaker(tmp_path / "asked", after), questions, out=tmp_path / "many", batch=1)  # type: ignore[arg-type]

    (code, words), (other, own) = together(2, act, tmp_path / "processes")
    assert code == 2 and words == "process 1: ZeroDivisionError: no such luck" and other == 1 and "ZeroDivisionError" in own
    assert len((tmp_path / "many" / "answers.jsonl").read_text().splitlines()) == 1 + 2


def test_questions_that_are_others_on_one_machine_and_a_folder_that_is_taken(tmp_path: Path) -> None:
    questions = suite(tmp_path)
    ask = lambda chosen, **more: mm.evaluate(Speaker(tmp_path / "asked"), chosen, out=tmp_path / "out", batch=1, **more)  # type: ignore[arg-type] # noqa: E731
    same = "takes the same files and arguments in all of them"
    ended = together(2, lambda rank: ask(questions.first(11 - rank)), tmp_path / "processes")
    assert ended == [(2, f"questions: process 1 has another than process 0; {same}")] * 2
    ended = together(2, lambda rank: ask(questions, call={"top_k": rank}), tmp_path / "processes")
    assert ended == [(2, f"eval.call.top_k: process 1 has another than process 0; {same}")] * 2

    class Slow(Speaker):
        def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
            ended = together(2, lambda rank: ask(questions), tmp_path / "second")
            why = f"{tmp_path / 'out'}: another process answers there; wait until it ends, or give another --out"
            assert ended == [(2, why), (2, f"process 0: {why}")]
            return super().generate(prompts, seeds, **call)

    mm.evaluate(Slow(tmp_path / "asked"), questions.first(1), out=tmp_path / "out")  # type: ignore[arg-type]


def texts() -> Any:
    return mm.policies.transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=9)


def letters(outputs: list[str], prompts: list[str], **columns: Any) -> torch.Tensor:
    return torch.tensor([float("nan") if "z" in text else float(text.count("e")) for text in outputs], dtype=torch.float64)


def running() -> Any:
    return mm.combinations.weighted_sum(weights={"e": 1.0}, transforms={"e": mm.combinations.z_score(over="running")})


ASKED = [f"{word} " for word in ("one", "two", "three", "four", "five")]
RECORDS = [Pair(prompt, "yes", f"no {place}", 1.0, f"pair {place}") for place, prompt in enumerate(ASKED)]
MAKES: dict[str, Callable[[Path], Any]] = {
    "pairs": lambda out: mm.commands.make_pairs(
        texts(), ASKED, {"e": letters}, out=str(out), group=6, prompts_at_once=2, cut="keep", most=2, combine=running()
    ),
    "rejected": lambda out: mm.commands.make_rejected(
        texts(), RECORDS, out=str(out), count=9, call={"temperature": 2.0}, records_at_once=2, cut="keep"
    ),
    "calibrate": lambda out: mm.commands.calibrate(texts(), ASKED, {"e": letters}, out=out, samples=3, prompts_at_once=2) and None,
}


@pytest.mark.parametrize("name", MAKES)
def test_files_that_are_made_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    counts = MAKES[name](tmp_path / "one.jsonl")

    def act(rank: int) -> None:
        with only_the_main_one_writes():
            assert MAKES[name](tmp_path / "two.jsonl") == counts

    assert together(2, act, tmp_path / "processes") == [(0, "")] * 2
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes() and (tmp_path / "one.jsonl").stat().st_size > 200
    few = {"pairs": "rollouts of 2 prompts: got 3", "rejected": "batches of 2 records: got 5", "calibrate": "rollouts of 2 prompts: got 3"}
    many = together(6, lambda rank: MAKES[name](tmp_path / "many.jsonl"), tmp_path / "processes")
    assert many == [(2, f"{few[name]} for 6 processes; takes 6 or more, or fewer processes")] * 6
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["one.jsonl", "two.jsonl"]


def test_records_that_are_others_on_one_machine(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        given = RECORDS if rank == 0 else [*RECORDS[:-1], Pair(ASKED[-1], "yes indeed", "no", 1.0, "pair 4")]
        mm.commands.make_rejected(texts(), given, out=str(tmp_path / "out.jsonl"), count=5, records_at_once=1)

    for code, why in together(2, act, tmp_path / "processes"):
        assert code == 2 and "records: processes read others at pair 4; takes the same files in all of them" in why
    assert not (tmp_path / "out.jsonl").exists()


def brightness(outputs: torch.Tensor, prompts: list[str], **columns: Any) -> torch.Tensor:
    return outputs.flatten(1).mean(1)


def test_a_comparison_and_guided_samples_are_those_of_one_process(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "guidance": ["dps scale=50"],
        "prompts": PROMPTS[:2],
        "samples": 1,
        "seeds": 2,
        "call": {"num_inference_steps": 2},
    }
    how: dict[str, Any] = {
        "reward": brightness,
        "guidance": "fk particles=2",
        "prompts": PROMPTS[:3],
        "call": arguments["call"],
        "count": 2,
    }
    compare(digits(), brightness, out=tmp_path / "one", **arguments)
    alone = guided_sample("digits", out=tmp_path / "one.png", **how)

    def act(rank: int) -> None:
        with only_the_main_one_writes():
            compare(digits(), brightness, out=tmp_path / "two", say=lines.append, **arguments)
            sampled = guided_sample("digits", out=tmp_path / "two.png", **how)
        assert len(lines) == (2 if rank == 0 else 0)
        assert sampled.scores is not None and torch.allclose(sampled.scores, alone.scores, atol=1e-6)
        assert replace(sampled.ledger, seconds=0.0) == replace(alone.ledger, seconds=0.0)

    lines: list[str] = []
    assert together(2, act, tmp_path / "processes") == [(0, "")] * 2
    one, two = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("one", "two"))
    for made in (one, two):
        assert made["rows"][0]["ledger"].pop("seconds") > 0
    assert one == two
    assert int((pixels(tmp_path / "one.png") - pixels(tmp_path / "two.png")).abs().max()) <= 1
    few = together(3, lambda rank: compare(digits(), brightness, **arguments), tmp_path / "processes")
    assert few == [(2, "guidances times seeds: got 2 for 3 processes; takes 3 or more, or fewer processes")] * 3


@pytest.mark.parametrize(
    ("words", "started"),
    [
        (("sample", "small", "--processes", "2", "--prompt", "--trust"), ["sample", "small", "--prompt", "--trust"]),
        (("--debug", "eval", "--processes=3", "small"), ["--debug", "eval", "small"]),
        (("train", "c.yaml", "steps=1", "--processes", "2", "--resume"), ["train", "c.yaml", "steps=1", "--resume"]),
    ],
)
def test_a_command_is_started_again_by_its_own_words(words: tuple[str, ...], started: list[str], here: Path, monkeypatch: Any) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("mmalign.distributed.launch.launch", lambda *given: calls.append(given) or 7)
    monkeypatch.setattr(sys, "argv", ["mmalign", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 7 and calls == [(started, 3 if "--processes=3" in words else 2)]


@pytest.mark.parametrize("command", [("train", "c.yaml"), ("sample", "small"), ("eval", "small")])
@pytest.mark.parametrize(
    ("count", "why"), [("0", "got 0, takes 1 or more"), ("-1", "got -1, takes"), ("a", "got 'a', takes a number, 1 or more")]
)
def test_what_is_no_number_of_processes_is_one_line(command: tuple[str, ...], count: str, why: str, here: Path, mmalign: Any) -> None:
    code, out, err = mmalign(*command, "--processes", count)
    assert (code, out) == (2, "") and err.startswith(f"--processes: {why}") and err.count("\n") == 1
