"""KL to the reference on a policy's own answers: token by token, and what an offline run shows of it."""

from __future__ import annotations

import json
import math

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair
from mmalign.training import sample_kl as module
from mmalign.training.sample_kl import sample_kl
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

PROMPTS = ["what is red?", "q", "q", "say more"]
ANSWERS = ["a dog and a cat", "b", "  ", "red " * 60]


@pytest.fixture
def policy():
    made = transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=16, device="cpu", lora={"rank": 2})
    made.sets.keep("ref")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in made.parameters().values():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return made


def by_hand(policy, prompt, answer):
    """The same from the whole distributions of both models, a position at a time."""
    row = policy.encode([prompt], [answer], torch.tensor([0]), torch.Generator().manual_seed(0)).held
    ids, tokens = list(row.encoded[0].ids), row.tokens[0, : row.lengths[0]].tolist()

    def of(name):
        with torch.no_grad(), policy.using(name):
            logits = policy.model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
        expected = [token for token in range(logits.shape[-1]) if token not in policy.scorer.never.tolist()]  # no padding, no beginning
        return logits[:, expected].double().log_softmax(-1)

    here, there = of("current"), of("ref")
    return float((here.exp() * (here - there)).sum())


def test_the_kl_of_whole_answers_is_the_sum_of_those_of_their_tokens(policy, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 3)
    kl = sample_kl(policy, PROMPTS, ANSWERS, "ref")
    wanted = [by_hand(policy, prompt, answer) for prompt, answer in zip(PROMPTS[:2], ANSWERS[:2], strict=True)]
    assert kl[:2].tolist() == pytest.approx(wanted, rel=1e-4) and min(wanted) > 1e-3
    assert kl[2:].isnan().all()  # an empty answer, and one that is longer than any may be


def test_one_answer_that_cannot_be_scored_does_not_cost_its_neighbours(policy):
    kl = sample_kl(policy, [PROMPTS[0], PROMPTS[3]], [ANSWERS[0], ANSWERS[3]], "ref")
    assert [math.isnan(value) for value in kl.tolist()] == [False, True]


def test_an_offline_run_of_words_shows_reward_against_kl(tmp_path):
    records = [Pair(f"what is {i}?", f"it is {i}.", f"dog {i}", 1.0, f"record-{i}") for i in range(8)]
    trained = transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=16, device="cpu", lora={"rank": 2})

    def length(outputs, prompts):
        return [float(len(output)) for output in outputs]

    run = mm.offline(
        trained, records, mm.methods.dpo(beta=0.1), steps=4, batch={"records": 4, "micro_rows": 8}, optimizer=mm.adamw(rate=0.1),
        evaluation={"every": 2, "samples": 2, "judges": {"length": length}, "call": {"max_completion": 8}},
        run={"name": "run", "folder": str(tmp_path), "trackers": ()},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    nats = [row["kl"] for row in rows if row["phase"] == "eval"]
    assert nats[0] == 0.0 and all(value > 1e-4 for value in nats[1:]) and run.summary["kl"] == nats[-1]
    assert not {name for name in run.summary if name.startswith("kl_")}
    page = run.report.path.read_text()
    assert "<h3>Reward against KL</h3>" in page and "No KL was logged" not in page
