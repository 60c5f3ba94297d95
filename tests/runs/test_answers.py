from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import media
from mmalign.runs import answers, folder
from mmalign.training.evaluations.evaluation import EvaluationPlan, evaluate
from mmalign.types import UserError


class Speaker:
    """A policy that answers with its prompt's number and the seed."""

    sets = SimpleNamespace(shards=None, others={})

    def using(self, name):
        from contextlib import nullcontext

        return nullcontext()

    def generate(self, prompts, seeds, **call):
        return [f"{prompt} {place}" for place, prompt in enumerate(prompts)]


def question(image, words="What is there?"):
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", **image}, {"type": "text", "text": words}]},
    ]


def shown_in_turns():
    """A conversation in which a tool shows a picture."""
    picture = media.address(Image.new("RGB", (30, 20), "blue"))
    look = {"role": "tool", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "<closer>"}]}
    return [{"role": "assistant", "content": "zoom 1"}, look, {"role": "assistant", "content": "a dog"}]


def test_conversations_are_kept_with_what_they_were_shown(tmp_path):
    answers.write(tmp_path, 3, ["what?", "and?"], [shown_in_turns(), "words"], [{"mentions": [(2, 5, "dog", True)]}, {}])
    [(_, (first, second))], notes = answers.read(tmp_path)
    [asked, shown] = first["turns"]
    assert (first["answer"], second["answer"], notes) == ("a dog", "words", []) and "turns" not in second
    assert first["mentions"] == [[2, 5, "dog", True]] and asked == {"role": "assistant", "text": "zoom 1", "images": []}
    assert shown["role"] == "tool" and Image.open(tmp_path / "answers" / shown["images"][0]).getpixel((3, 3)) == (0, 0, 255)
    assert answers.table(["what?"], [shown_in_turns()])[1] == [["what?", "a dog"]]


def test_an_evaluation_keeps_conversations():
    class Talking(Speaker):
        def generate(self, prompts, seeds, **call):
            return [shown_in_turns() for _ in prompts]

    plan = EvaluationPlan(["a"], {}, samples=1, columns=1, mark=lambda words, prompts: [{"mentions": [], "objects": words}])
    results = evaluate(Talking(), plan)
    assert results.answers.outputs == [shown_in_turns()] and results.answers.marks[0]["objects"] == ["a dog"]


def test_written_and_read(tmp_path):
    Image.new("RGB", (900, 300), "red").save(tmp_path / "red.png")
    prompts = [question({"path": str(tmp_path / "red.png")}), question({"image": torch.ones(1, 8, 6)}), "only words"]
    marks = [{"mentions": [(0, 3, "dog", np.bool_(True))], "objects": {"dog"}}, {"mentions": [], "objects": []}, {"mentions": []}]
    answers.write(tmp_path, 40, prompts, ["dog", "", "x"], marks)
    answers.write(tmp_path, 0, prompts, ["cat", "\u2028 é", "x"])
    steps_read, notes = answers.read(tmp_path)
    assert [step for step, _ in steps_read] == [0, 40] and notes == []
    first, second, third = steps_read[1][1]
    assert first["prompt"] == "What is there?" and first["mentions"] == [[0, 3, "dog", True]] and first["objects"] == ["dog"]
    assert third == {"prompt": "only words", "images": [], "answer": "x", "mentions": [], "objects": []}
    assert steps_read[0][1][1]["answer"] == "\u2028 é" and "mentions" not in steps_read[0][1][0]
    copy = Image.open(tmp_path / "answers" / first["images"][0])
    assert copy.size == (224, 75) and copy.getpixel((100, 30)) == (255, 0, 0)
    assert Image.open(tmp_path / "answers" / second["images"][0]).size == (6, 8)
    assert len(list((tmp_path / "answers" / "images").iterdir())) == 2  # one copy for both steps


def test_images_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    frames = [Image.effect_noise((16, 16), 90) for _ in range(3)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:])
    data = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(
        data[: len(data) * 2 // 3]
    )  # its frames are counted, and struct.error or IndexError is what that raises
    paths = ["broken.png", "absent.png", "cmyk.jpg", "large.png", "whole.gif", "cut.gif", "a" * 5000]
    monkeypatch.setattr(answers, "LIMITS", replace(answers.LIMITS, pixels=1000))
    answers.write(tmp_path, 1, [question({"path": str(tmp_path / path)}) for path in paths], ["x"] * len(paths))
    kept = [row["images"][0] for row in answers.read(tmp_path)[0][0][1]]
    assert [name is None for name in kept] == [True, True, False, True, False, True, True]
    with pytest.raises(UserError, match=r"shape \[8, 6\]"):
        answers.write(tmp_path, 2, [question({"image": torch.ones(8, 6)})], ["x"])


def test_a_torn_file_is_noted(tmp_path):
    answers.write(tmp_path, 1, ["a"], ["b"])
    (tmp_path / "answers" / "step_000002.jsonl").write_text('{"prompt": "a"')
    (tmp_path / "answers" / "step_last.jsonl").write_text("")
    steps_read, notes = answers.read(tmp_path)
    assert [step for step, _ in steps_read] == [1] and notes == ["step_000002.jsonl could not be read"]
    assert answers.read(tmp_path / "nowhere") == ([], [])


def test_an_evaluation_keeps_what_a_person_may_read():
    mark = lambda outputs, prompts: [{"mentions": [], "objects": [prompt]} for prompt in prompts]  # noqa: E731
    results = evaluate(Speaker(), EvaluationPlan(["a", "b"], {}, samples=3, columns=2, mark=mark)).answers
    assert results.prompts == ["a", "a", "b", "b"] and results.outputs == ["a 0", "a 1", "b 3", "b 4"]
    assert [mark["objects"] for mark in results.marks] == [["a"], ["a"], ["b"], ["b"]]
    assert evaluate(Speaker(), EvaluationPlan(["a"], {}, samples=1)).answers.marks is None
    with pytest.raises(UserError, match="0 marks for 1 answers"):
        evaluate(Speaker(), EvaluationPlan(["a"], {}, samples=1, mark=lambda outputs, prompts: []))


def test_images_have_no_answers():
    class Painter(Speaker):
        def generate(self, prompts, seeds, **call):
            return torch.zeros(len(prompts), 3, 4, 4)

    results = evaluate(Painter(), EvaluationPlan(["a"], {}, samples=2))
    assert results.answers is None and results.grid is not None


def test_resuming_drops_what_comes_later(tmp_path):
    run = folder.open_run(tmp_path, "run", config={"steps": 2})
    for step in (0, 1):
        answers.write(run.path, step, ["a"], ["b"])
    from mmalign.runs import checkpoint

    checkpoint.save(run.checkpoints, 0, tensors={}, state={"step": 0})
    folder.open_run(tmp_path, "run", config={"steps": 2}, resume=True)
    assert [step for step, _ in answers.read(run.path)[0]] == [0]
    assert json.loads((run.path / "answers" / "step_000000.jsonl").read_text())["answer"] == "b"
