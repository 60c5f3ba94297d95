from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mmalign as mm
from mmalign.cli import app
from mmalign.types import UserError


class Speaker:
    """Says yes to every other question, and remembers what it was asked."""

    def __init__(self, says=None):
        self.asked, self.seeds, self.call, self.sets = [], [], None, []
        self.says = says or (lambda prompt: "Yes" if prompt[0]["content"][-1]["text"].endswith("1") else "No.")

    @contextmanager
    def using(self, name):
        self.sets.append(name)
        yield

    def generate(self, prompts, seeds, **call):
        self.asked += [prompt[0]["content"][-1]["text"] for prompt in prompts]
        self.seeds += seeds
        self.call = call
        return [self.says(prompt) for prompt in prompts]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{number}.png")
        rows.append({"question_id": number, "image": f"{number}.png", "text": f"{number % 2}", "label": "yes" if number < 3 else "no"})
    (tmp_path / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def suite(files):
    return mm.evaluation.pope(files / "coco_pope_random.json", images=files / "images", resamples=50)


def test_from_questions_to_numbers(files):
    policy = Speaker()
    numbers = mm.evaluate(policy, suite(files), out=files / "out", batch=4, call={"top_k": 3}, using="ema", who="me")
    # yes to 1, 3, 5; the truth is yes for 0, 1, 2
    assert numbers.scores.values["random/accuracy"].value == 2 / 6
    assert policy.sets == ["ema"] and policy.call == {"temperature": 0, "top_k": 3}
    assert len(set(policy.seeds)) == 6
    results = json.loads((files / "out/results.json").read_text())
    assert results["who"] == "me" and results["questions"] == results["of"] == 6 and results["counts"]["answers"] == 6
    assert results["values"]["random/accuracy"]["value"] == 2 / 6 and results["published"]["random/accuracy"] == 2 / 6
    rows = [json.loads(line) for line in (files / "out/rows.jsonl").read_text().splitlines()]
    assert rows[1] == {"id": "1", "question": "1", "answer": "Yes", "said": "yes", "label": "yes", "outcome": "tp", "parsed": True}


def test_it_goes_on_where_it_was_interrupted(files):
    whole = mm.evaluate(Speaker(), suite(files), out=files / "whole", batch=2)

    class Falls(Speaker):
        def generate(self, prompts, seeds, **call):
            if len(self.asked) >= 4:
                raise RuntimeError("out of memory")
            return super().generate(prompts, seeds, **call)

    with pytest.raises(RuntimeError):
        mm.evaluate(Falls(), suite(files), out=files / "out", batch=2)
    file = files / "out/answers.jsonl"
    assert len(file.read_text().splitlines()) == 1 + 4
    file.write_text(file.read_text() + '{"id": "5", "ans')  # and the machine fell too
    policy = Speaker()
    results = mm.evaluate(policy, suite(files), out=files / "out", batch=3)
    assert policy.asked == ["0", "1"]  # questions 4 and 5 alone
    assert results.scores.values == whole.scores.values
    assert file.read_text() == (files / "whole/answers.jsonl").read_text()
    speaker = Speaker()
    mm.evaluate(speaker, suite(files), out=files / "out")
    assert speaker.asked == []


def test_other_answers_are_not_gone_on_with(files):
    mm.evaluate(Speaker(), suite(files), out=files / "out", who="me")
    for change in ({"who": "you"}, {"who": "me", "call": {"temperature": 1}}, {"who": "me", "seed": 1}, {"who": "me", "using": "ref"}):
        with pytest.raises(UserError, match=r"holds answers with another (who|call|seed)"):
            mm.evaluate(Speaker(), suite(files), out=files / "out", **change)
    with pytest.raises(UserError, match="which is not asked"):
        mm.evaluate(Speaker(), suite(files).first(2), out=files / "out", who="me")


def test_answers_that_are_there_already(files):
    given = files / "given.jsonl"
    given.write_text("".join(json.dumps({"question_id": number, "text": "Yes"}) + "\n" for number in range(5)))
    results = mm.evaluate(None, suite(files), out=files / "out", answers=given)
    assert results.scores.counts == {"answers": 6, "missing": 1, "unparsed": 0}
    assert results.scores.values["random/recall"].value == 1.0
    assert json.loads((files / "out/rows.jsonl").read_text().splitlines()[5])["missing"] is True
    given.write_text('{"id": "x", "text": "Yes"}\n')
    with pytest.raises(UserError, match=r"answers none of the questions \(ids like 0; it has ids like x\)"):
        mm.evaluate(None, suite(files), out=files / "out", answers=given)


def test_answers_without_ids_go_by_order_where_there_is_one_for_each(files):
    given = files / "given.jsonl"
    given.write_text("".join(json.dumps({"question": "?", "answer": "Yes" if n < 3 else "No"}) + "\n" for n in range(6)))
    assert mm.evaluate(None, suite(files), out=files / "out", answers=given).scores.values["random/accuracy"].value == 1.0
    assert mm.evaluate(None, suite(files).first(2), out=files / "out", answers=given).scores.counts["answers"] == 2
    given.write_text('{"answer": "Yes"}\n')
    with pytest.raises(UserError, match="1 rows without an id"):
        mm.evaluate(None, suite(files), out=files / "out", answers=given)


def test_policies_that_do_not_answer(files):
    painter = Speaker()
    painter.generate = lambda prompts, seeds, **call: torch.zeros(len(prompts), 3, 4, 4)
    with pytest.raises(UserError, match="the policy answers with images, and this benchmark reads words"):
        mm.evaluate(painter, suite(files), out=files / "one")
    with pytest.raises(UserError, match=r"Speaker takes no questions about images \('list' object"):
        mm.evaluate(Speaker(lambda prompt: prompt.strip()), suite(files), out=files / "two")
    with pytest.raises(UserError, match="no policy and no answers"):
        mm.evaluate(None, suite(files), out=files / "three")
    (files / "images/3.png").unlink()
    with pytest.raises(UserError, match=r"1 of 6 are not there, .*3\.png"):
        mm.evaluate(Speaker(), suite(files), out=files / "four")
    assert not (files / "four").exists()


def command(*words):
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def test_the_command_scores_answers(files, monkeypatch):
    monkeypatch.chdir(files)
    given = files / "given.jsonl"
    given.write_text("".join(json.dumps({"question_id": number, "text": "Yes"}) + "\n" for number in range(6)))
    done = command("--suite", "pope", "--annotations", "coco_pope_random.json", "--answers", given, "resamples=20")
    assert done.exit_code == 0, done.output
    assert "random/accuracy" in done.output and "0.500" in done.output and "answers 6  missing 0" in done.output
    assert json.loads((files / "evaluations/given-pope/results.json").read_text())["counts"]["answers"] == 6
    fewer = command("--suite", "pope", "--annotations", "coco_pope_random.json", "--answers", given, "--limit", 2, "--out", "here")
    assert "note: the first 2 of 6 questions" in fewer.output and (files / "here/results.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither a run nor --suite"),
        (["--suite", "popo", "--annotations", ".", "--answers", "given"], "takes amber, best_of_samples, chair"),
        (["--suite", "pope", "--answers", "given"], "--annotations: got None"),
        (["--suite", "pope", "--annotations", "."], "neither a model nor --answers"),
        (["--suite", "pope", "--annotations", ".", "--answers", "nowhere"], "nowhere is not there"),
        (["--suite", "pope", "--annotations", "coco_pope_random.json", "--answers", "given", "resample=2"], "nearest: resamples"),
        (["--suite", "mmhal", "--annotations", ".", "--answers", "given"], "--judge: mmhal is judged"),
        (["nowhere"], "no run there"),
    ],
)
def test_the_command_says_what_is_wrong(files, monkeypatch, words, said):
    monkeypatch.chdir(files)
    (files / "given").write_text('{"id": 0, "text": "Yes"}\n')
    done = command(*words)
    assert done.exit_code == 2 and said in done.output.replace("\n", " "), done.output


def test_a_judge_on_a_server(files, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "rewards"))
    from tests.helpers.fake_server import FakeServer, written

    monkeypatch.chdir(files)
    rows = [
        {"question_type": "attribute", "image_id": str(n), "image_src": f"{n}.png", "image_content": [],
         "question": "Q?", "gt_answer": "A."}
        for n in range(4)
    ]  # fmt: skip
    Path("template.json").write_text(json.dumps(rows))
    Path("given.jsonl").write_text("".join(json.dumps({"image_id": str(n), "answer": f"say {n}"}) + "\n" for n in range(4)))
    server = FakeServer(lambda body: written("Rating: 6" if "say 1" in body["messages"][0]["content"] else "Rating: 1"))
    words = ["--suite", "mmhal", "--annotations", "template.json", "--answers", "given.jsonl", "--judge", server.url]
    try:
        assert "--judge-model" in command(*words).output
        done = command(*words, "--judge-model", "m", "resamples=20")
        requests_before = len(server.requests)
        again = command(*words, "--judge-model", "m", "resamples=20")
    finally:
        server.kill()
    assert done.exit_code == 0, done.output
    assert "2.250" in done.output and "answers 4  missing 0  unparsed 0" in done.output  # (6 + 1 + 1 + 1) / 4
    assert requests_before == 4 and len(server.requests) == 4 and "2.250" in again.output  # reviews are kept
