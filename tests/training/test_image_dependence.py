from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from mmalign.conversations import without_media
from mmalign.training.evaluations.evaluation import EvaluationPlan, evaluate
from mmalign.training.evaluations.image_dependence import image_dependence
from mmalign.types import Rollout, Steps, UserError


class Looker:
    """Finds each word of an answer likelier by ``gain`` nats where it sees an image; padded to the longest, with rubbish behind."""

    sets = SimpleNamespace(shards=None, others={})

    def __init__(self, gain=0.75):
        self.gain, self.batches = gain, []

    def using(self, name):
        return nullcontext()

    def generate(self, prompts, seeds, **call):
        return ["one two three", "", "one"][: len(prompts)]

    def encode(self, prompts, outputs, group, rng):
        if "unreadable" in outputs:
            raise UserError("row 0: reads otherwise")
        self.batches.append(prompts)
        lengths = torch.tensor([len(output.split()) for output in outputs])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Rollout(prompts, outputs, torch.zeros(mask.shape, dtype=torch.float64), mask, group, {})

    def steps(self, rollout, rows, columns=None, needs=frozenset()):
        sees = torch.tensor([any(part["type"] == "image" for part in prompt[0]["content"]) for prompt in rollout.prompts])
        log_probs = torch.full(rollout.mask.shape, -2.0, dtype=torch.float64) + self.gain * sees[:, None]
        rubbish = 1e6 * (1.0 + sees[:, None].double())
        return Steps(log_probs.where(rollout.mask, rubbish), rollout.mask, event_size=1, kind="token")


def question(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


IMAGE = {"type": "image", "path": "a.png"}


def test_by_token_and_not_by_answer():
    dependence = image_dependence(Looker(), [question(IMAGE), question(IMAGE)], ["one two three", "one"])
    assert dependence.tolist() == [0.75, 0.75]


def test_what_cannot_be_known_is_nan(monkeypatch):
    monkeypatch.setattr("mmalign.training.evaluations.image_dependence.ROWS", 1)
    prompts = [question(), "only words", question(IMAGE), question(IMAGE), question(IMAGE)]
    dependence = image_dependence(Looker(), prompts, ["a", "a", "  ", "unreadable", "a"])
    assert [math.isnan(value) for value in dependence.tolist()] == [True, True, True, True, False]


def test_the_question_stands_alone():
    talk = [{"role": "system", "content": "Be brief."}, *question(IMAGE, {"type": "video", "path": "b.mp4"})]
    assert without_media(talk) == [{"role": "system", "content": "Be brief."}, *question()]
    assert talk[1]["content"][0] == IMAGE  # the prompt itself is left alone
    policy = Looker()
    image_dependence(policy, [question(IMAGE)], ["a"])
    assert policy.batches == [[question(IMAGE)], [question()]]


def test_as_part_of_an_evaluation():
    results = evaluate(Looker(), EvaluationPlan([question(IMAGE)] * 3, {}, samples=1, blind=True)).metrics
    assert results["image_dependence"] == 0.75 and results["image_dependence_se"] == 0.0 and results["image_dependence_missing"] == 1
    assert "image_dependence" not in evaluate(Looker(), EvaluationPlan([question(IMAGE)], {}, samples=1)).metrics

    class Painter(Looker):
        def generate(self, prompts, seeds, **call):
            return torch.zeros(len(prompts), 3, 4, 4)

    with pytest.raises(UserError, match="does not answer in words"):
        evaluate(Painter(), EvaluationPlan(["a"], {}, samples=1, blind=True))
