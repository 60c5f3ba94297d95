"""A benchmark of rewards: by a reward, a judge, or a file of scores; from Python and from the command line."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mmalign as mm
from mmalign.cli import app
from mmalign.media import Broken
from mmalign.types import UserError
from tests.helpers.fake_server import FakeServer, likely, written

ROWS = [
    {"prompt": "?", "chosen": "a long one", "rejected": "short", "subset": "math-prm", "id": 1},
    {"prompt": "?", "chosen": "x", "rejected": "a longer one", "subset": "hep-cpp", "id": 2},
    {"prompt": "?", "chosen": "longest of all", "rejected": "y", "subset": "alpacaeval-easy", "id": 3},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rb.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def suite(file):
    return mm.evaluation.reward_bench(file, resamples=20)


class Lengths:
    """A reward that remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, outputs, prompts, **columns):
        self.asked += list(outputs)
        return torch.tensor([float(len(output)) for output in outputs])


def test_a_reward_scores_every_output_once_and_goes_on(file, tmp_path):
    class Falls(Lengths):
        def __call__(self, outputs, prompts, **columns):
            if self.asked:
                raise RuntimeError("out of memory")
            return super().__call__(outputs, prompts)

    with pytest.raises(RuntimeError):
        mm.evaluate_reward(suite(file), reward=Falls(), out=tmp_path / "out", batch=1, who="me")
    reward = Lengths()
    evaluated = mm.evaluate_reward(suite(file), reward=reward, out=tmp_path / "out", batch=2, who="me")
    assert reward.asked == ["x", "a longer one", "longest of all", "y"]
    assert evaluated.scores.values["accuracy"].value == pytest.approx(2 / 3)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["who"] == "me" and results["counts"] == {"comparisons": 3, "missing": 0, "ties": 0}
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert rows[1] == {"id": "hep-cpp/2", "subset": "hep-cpp", "scores": [1.0, 12.0], "right": 0.0, "margin": -11.0}
    page = (tmp_path / "out/report.html").read_text()
    assert "<svg" in page and "accuracy/math-prm" in page and "missing 0" in page
    with pytest.raises(UserError, match="holds scores with another who"):
        mm.evaluate_reward(suite(file), reward=Lengths(), out=tmp_path / "out", who="you")
    again = mm.evaluate_reward(suite(file), scores=tmp_path / "out/scores.jsonl", out=tmp_path / "again", who="me")
    assert (tmp_path / "again/report.html").read_text() == page
    assert again.scores.values["accuracy"] == evaluated.scores.values["accuracy"]


def test_missing_scores_are_counted_and_none_at_all_is_said(file, tmp_path):
    half = lambda outputs, prompts, **columns: torch.tensor([math.nan if text == "y" else 1.0 for text in outputs])  # noqa: E731
    evaluated = mm.evaluate_reward(suite(file), reward=half, out=tmp_path / "half")
    assert evaluated.scores.counts["missing"] == 1 and evaluated.scores.values["accuracy"].value == 0.5
    assert json.loads((tmp_path / "half/rows.jsonl").read_text().splitlines()[2])["missing"] is True
    none = lambda outputs, prompts, **columns: torch.full((len(outputs),), math.nan)  # noqa: E731
    with pytest.raises(UserError, match="me scored none of the outputs of 3 comparisons of reward_bench"):
        mm.evaluate_reward(suite(file), reward=none, out=tmp_path / "none", who="me")


def test_parts_of_a_reward(file, tmp_path):
    parts = lambda outputs, prompts, **columns: {"long": torch.ones(len(outputs)), "brief": torch.zeros(len(outputs))}  # noqa: E731
    with pytest.raises(UserError, match="part: got None, the reward scores long, brief; takes one of them"):
        mm.evaluate_reward(suite(file), reward=parts, out=tmp_path / "a")
    assert mm.evaluate_reward(suite(file), reward=parts, part="long", out=tmp_path / "b").scores.counts["ties"] == 3
    with pytest.raises(UserError, match="part: got 'long', and the reward has one score without a name"):
        mm.evaluate_reward(suite(file), reward=Lengths(), part="long", out=tmp_path / "c")
    with pytest.raises(UserError, match="part: got 'long', and scores gives one number"):
        mm.evaluate_reward(suite(file), scores=file, part="long", out=tmp_path / "e")
    with pytest.raises(UserError, match="got reward and scores, takes one of reward, oracle and scores"):
        mm.evaluate_reward(suite(file), reward=parts, scores=file, out=tmp_path / "d")


def test_an_oracle_of_pairs_gives_mean_win_probabilities(tmp_path):
    four = {"id": "1", "prompt": "?", "chosen": ["aaaa"], "rejected": ["a", "aa", "aaa"], "subset": "Math"}
    two = {**four, "id": "2", "rejected": ["a", "b", "aaaaa"]}
    (tmp_path / "rb2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (four, two)))

    def longer(outputs, prompts, group, **columns):
        lengths = torch.tensor([float(len(output)) for output in outputs])
        wins = (lengths[:, None] > lengths[None, :]).double() + (lengths[:, None] == lengths[None, :]) / 2
        return torch.where(group[:, None] == group[None, :], wins, math.nan)

    evaluated = mm.evaluate_reward(mm.evaluation.reward_bench_2(tmp_path / "rb2.jsonl", resamples=20), oracle=longer, out=tmp_path / "out")
    scores = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert scores[0]["scores"] == pytest.approx([1, 0, 1 / 3, 2 / 3]) and scores[1]["scores"] == pytest.approx([2 / 3, 1 / 6, 1 / 6, 1])
    assert evaluated.scores.values["accuracy/Math"].value == 0.5


def test_images_of_several_sizes_and_a_broken_one(tmp_path):
    for number, side in enumerate((4, 8, 6)):
        Image.new("RGB", (side, side), (100 * number,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [{"prompt": "cat", "path1": f"{one}.png", "path2": f"{other}.png"} for one, other in ((1, 0), (2, 1), (2, "broken"))]
    (tmp_path / "hpdv3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def bright(outputs, prompts, **columns):
        seen.append(tuple(outputs.shape))
        return outputs.flatten(1).mean(1)

    pairs = mm.evaluation.picture_pairs(tmp_path / "hpdv3.jsonl", resamples=20)
    evaluated = mm.evaluate_reward(pairs, reward=bright, out=tmp_path / "out")
    assert evaluated.scores.values["accuracy"].value == 1.0 and evaluated.scores.counts["missing"] == 1
    assert sorted(seen) == [(1, 3, 4, 4), (1, 3, 6, 6), (2, 3, 8, 8)]
    with pytest.raises(Broken):
        pairs.items[2].read()
    with pytest.raises(UserError, match="takes completions"):  # a reward of texts is shown images
        mm.evaluate_reward(pairs, reward=mm.rewards.length(2), out=tmp_path / "text")


def test_files_of_scores_that_do_not_fit(file, tmp_path):
    given = tmp_path / "given.jsonl"
    for line, words in (
        ({"id": "x", "scores": [1, 2]}, r"has none of the comparisons \(ids like math-prm/1; it has ids like x\)"),
        ({"id": "hep-cpp/2", "scores": [1]}, "has 1 scores of hep-cpp/2, which has 2 outputs"),
        ({"id": "hep-cpp/2"}, "takes id, and scores: a list of numbers"),
    ):
        given.write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match=words):
            mm.evaluate_reward(suite(file), scores=given, out=tmp_path / "out")


def command(*words):
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def test_the_command(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("--suite", "reward_bench", "--data", file, "--reward", "{use: length, most: 2}", "resamples=20")
    assert done.exit_code == 0, done.output
    assert "accuracy/math-prm" in done.output and "comparisons 3  missing 0" in done.output
    assert (tmp_path / "evaluations/length-reward_bench/report.html").exists()
    scores = tmp_path / "evaluations/length-reward_bench/scores.jsonl"
    stored = command("--suite", "reward_bench", "--data", file, "--scores", scores, "--limit", "2", "--out", "here")
    assert stored.exit_code == 0 and "note: the first 2 of 3 comparisons" in stored.output


def test_the_command_asks_a_judge_in_both_orders(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = FakeServer(lambda body: likely(A=0.9, B=0.1))  # always the first
    done = command("--suite", "reward_bench", "--data", file, "--judge", server.url, "--judge-model", "m", "criterion=who is right")
    server.kill()
    assert done.exit_code == 0, done.output
    assert len(server.requests) == 6 and "who is right" in json.dumps(server.requests[0])
    rows = [json.loads(line) for line in (tmp_path / "evaluations/m-reward_bench/rows.jsonl").read_text().splitlines()]
    assert all(row["scores"] == pytest.approx([0.5, 0.5]) for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "eval: got nothing that scores, takes one of a run, --reward, --judge, --scores"),
        (["--reward", "length", "--judge", "http://x"], "got --reward and --judge"),
        (["--reward", "lenght"], "nearest: length"),
        (["--reward", "[1"], "--reward: got '[1', takes a reward's name, or a node"),
        (["--judge", "http://x"], "--judge: takes the URL of an OpenAI-compatible server, and --judge-model"),
        (["--scores", "nowhere"], "--scores: nowhere is not there"),
        (["--reward", "{use: length, most: 2}", "resample=2"], "resample: no such argument of the suite"),
        (["nowhere"], "nowhere: no run there"),
    ],
)
def test_the_command_says_what_is_wrong(file, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = command("--suite", "reward_bench", "--data", file, *words)
    assert done.exit_code == 2 and said in done.output.replace("\n", " "), done.output
    none = command("--suite", "reward_bench", "--data", "no.jsonl", "--reward", "{use: length, most: 2}")
    assert none.exit_code == 2 and "--data: got no.jsonl, takes the file or folder of reward_bench" in none.output.replace("\n", " ")
    other = command("--suite", "pope", "--data", file, "--reward", "length")
    assert other.exit_code == 2 and "--reward: pope measures what a model answers" in other.output.replace("\n", " ")


def test_the_command_examines_a_judge_under_templates(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def answer(body):
        text = json.dumps(body["messages"])
        first, second = (text.partition(f"<response {letter}>")[2].partition("</response")[0] for letter in "AB")
        return written("A" if "anything" in text or len(first) > len(second) else "B")

    server = FakeServer(answer)
    words = ["templates={place: which is anything, length: which is longer}", "repetitions=2", "read=written", "temperature=1"]
    words.append("by_principle=true")
    done = command("--suite", "reward_bench", "--data", file, "--judge", server.url, "--judge-model", "m", *words)
    server.kill()
    assert done.exit_code == 0, done.output
    assert len(server.requests) == 3 * 2 * 2 * 2 and server.requests[0]["temperature"] == 1
    results = json.loads((tmp_path / "evaluations/m-reward_bench-judge/results.json").read_text())
    found = {name: value["value"] for name, value in results["values"].items()}
    assert found["place/position_bias"] == 1 and found["place/order_flips"] == 1 and found["place/flip_rate"] == 0
    assert found["length/position_bias"] == 0 and found["length/prefers_longer"] == 1 and found["length/length_bias"] == 1
    # by place nothing is preferred over both orders: what is longer is the consensus, and people go against it once in three
    assert found["principles/consensus"] == 1 and found["principles/arbitrariness"] == pytest.approx(1 / 3)
    assert found["length/accuracy"] == pytest.approx(2 / 3) and results["counts"] == {"pairs": 3, "asked": 24, "missing": 0}
    odd = command("--suite", "reward_bench", "--data", file, "--judge", "http://x", "--judge-model", "m", "templates=3")
    assert odd.exit_code == 2 and "templates: got 3, takes {name: criterion, ...}" in odd.output.replace("\n", " ")


def test_a_judge_is_examined_on_pairs(tmp_path):
    row = {"id": "1", "prompt": "?", "chosen": ["aaaa"], "rejected": ["a", "aa", "aaa"], "subset": "Math"}
    (tmp_path / "rb2.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"reward_bench_2 compares 4 outputs \(Math/1\), takes a benchmark of pairs"):
        mm.evaluate_judge(mm.evaluation.reward_bench_2(tmp_path / "rb2.jsonl"), judges={"": lambda *asked: []}, out=tmp_path / "out")
    with pytest.raises(UserError, match="judges: got none"):
        mm.evaluate_judge(mm.evaluation.reward_bench_2(tmp_path / "rb2.jsonl"), judges={}, out=tmp_path / "out")


def test_a_judge_that_answers_nothing_is_said(file, tmp_path):
    silent = lambda prompts, firsts, seconds: [math.nan] * len(prompts)  # noqa: E731
    with pytest.raises(UserError, match="of 6 questions the judge answered none"):
        mm.evaluate_judge(suite(file), judges={"": silent}, out=tmp_path / "out")
