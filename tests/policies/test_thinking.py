"""Reward models that think before they score: which of a row's words are learned, and that they write them by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair
from mmalign.types import Rollout, UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

NAMES = ["score", "said", "told"]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def judged(answer: str, *words: tuple[str, str]) -> list[dict[str, str]]:
    return [turn("assistant", answer), turn("user", "ok"), *(turn(role, text) for role, text in words)]


def policy(seed: int = 0, *, most: int = 56, **settings: Any) -> Any:
    of = transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=most, **settings)
    made = mm.policies.scorer(mm.policies.thinking(of, ask="ok"), head=mm.heads.thought(), scores=NAMES)
    with torch.no_grad():
        made.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def test_costs_are_of_the_tokens_behind_the_answer() -> None:
    made, prompt = policy(most=96), "abc"
    output = judged("the answer", ("assistant", "one two"), ("user", "it is not"), ("assistant", "so no"))
    numbers = made.score([prompt], [output])[0]
    chat, model = made.of.of.chat, made.of.of.model
    row, asked = chat.row(prompt, output), chat.prompt(prompt).ids
    ids = torch.tensor([[*asked, *row.completion]])
    with torch.no_grad():
        states = model.base_model(input_ids=ids).last_hidden_state[0]
        logits = model(input_ids=ids).logits[0].double()
    logits[:, sorted(chat.never)] = -torch.inf  # what is never said has no probability
    likely = logits.log_softmax(-1)
    costs = [-float(likely[len(asked) + place - 1, token]) for place, token in enumerate(row.completion)]
    begins = [place for place, live in enumerate(row.trained) if live and not (place and row.trained[place - 1])]
    assert len(begins) == 3  # the answer, and twice what was thought of it
    said = [cost for place, cost in enumerate(costs) if row.trained[place] and place >= begins[1]]
    told = [cost for place, cost in enumerate(costs) if not row.trained[place] and place >= begins[1]]
    wanted = [float(made.head.weight[0] @ states[-1]), sum(said) / len(said), sum(told) / len(told)]
    torch.testing.assert_close(numbers, torch.tensor(wanted).double(), rtol=1e-4, atol=1e-4)


def test_the_costs_reach_the_words_and_the_score_the_rest() -> None:
    made = policy()
    rollout = made.encode(
        ["abc"] * 2, [judged("yes", ("assistant", "why")), judged("no", ("assistant", "one"))], torch.tensor([0, 0]), None
    )
    steps = made.steps(rollout, torch.arange(2))
    for column, moves_head in ((0, True), (1, False)):
        gradients = torch.autograd.grad(
            steps.log_probs[:, column].sum(), list(made.parameters().values()), retain_graph=True, allow_unused=True
        )
        moved = {name for name, gradient in zip(made.parameters(), gradients, strict=True) if gradient is not None and bool(gradient.any())}
        assert ("head.weight" in moved) == moves_head and len(moved) > 5
    assert steps.log_probs[:, 2].tolist() == [0.0, 0.0]  # nobody told it anything


def test_an_answer_alone_is_thought_about_first(tmp_path: Path) -> None:
    pairs = [Pair(f"abc {n}", judged("yes", ("assistant", "why")), judged("no", ("assistant", "one")), id=str(n)) for n in range(4)]
    unseen = [Pair("one two", judged("yes", ("assistant", "why")), judged("no", ("assistant", "one")), id="x")]
    run = mm.offline(
        policy(), pairs, mm.methods.bradley_terry_thinking(), steps=12, batch={"records": 4}, optimizer=mm.adamw(rate=1e-2),
        evaluation={"records": unseen, "every": 12}, run={"folder": str(tmp_path), "name": "rm", "trackers": (), "checkpoint_every": 12},
    )  # fmt: skip
    assert run.summary["held_out/accuracy_after"] == 1.0
    assert run.summary["held_out/said_after"] < 0.5 * run.summary["held_out/said_before"]
    reader = run.policy.reader
    written = reader._thought(["one two"], ["yes"])[0]
    assert written[:2] == judged("yes") and written[2]["role"] == "assistant" and written[2]["content"]
    prompts, answers = ["one two"] * 2, ["yes", "no"]
    scores = run.policy.score(prompts, answers)
    torch.testing.assert_close(scores, run.policy.score(prompts, reader._thought(prompts, answers)), rtol=1e-5, atol=1e-6)
    assert scores[0, 0] > scores[1, 0]


def test_what_cannot_be_asked_again_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.of\.of: got a model without a chat template"):
        mm.policies.thinking(transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(None), max_completion=8))
    with pytest.raises(UserError, match=r"policy\.scores: got score; the head thought gives"):
        mm.heads.thought().make(5, ["score"])


def test_rows_score_alike_alone_and_beside_longer_ones() -> None:
    made = policy(most=96)
    short, long = judged("yes", ("assistant", "why")), judged("no", ("assistant", "one two three"), ("user", "so"), ("assistant", "it is"))
    parts = [made.encode(["abc"], [output], torch.tensor([0]), None) for output in (short, long)]
    together = Rollout.join(parts)
    alone = torch.cat([made.of_rows(part, torch.arange(1)) for part in parts])
    torch.testing.assert_close(made.of_rows(together, torch.arange(2)), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.of_rows(together.take(torch.tensor([1])), torch.arange(1)), alone[1:], rtol=1e-4, atol=1e-5)
