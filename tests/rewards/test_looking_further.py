"""Rewards of what comes of an answer, and of what another model makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.types import UserError


class Echo:
    """Answers a prompt with its words and its number of the draw."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, int]] = []

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
        self.asked += list(zip(prompts, seeds, strict=True))
        return [f"{prompt} {call.get('more', '')}".strip() for prompt in prompts]


def longer(outputs: list[str], prompts: list[str], *, bonus: list[float]) -> Tensor:
    """How many letters an answer is longer than the prompt, and a column."""
    lines = zip(outputs, prompts, bonus, strict=True)
    return torch.tensor([len(output) - len(prompt) + more for output, prompt, more in lines], dtype=torch.float64)


def test_through_scores_the_answer_beside_the_first_prompt() -> None:
    model = Echo()
    reward = mm.rewards.through(longer, policy=model, samples=2, call={"more": "xy"})
    scores = reward(["abcd", " ", "ab"], ["a", "b", "abc"], bonus=[0.5, 0.0, 0.0])
    assert scores.tolist()[0] == 4 + 3 - 1 + 0.5 and scores.isnan().tolist() == [False, True, False] and scores.tolist()[2] == 2.0
    assert [prompt for prompt, _ in model.asked] == ["abcd", "ab"] * 2 and len({seed for _, seed in model.asked}) == 4
    again = list(model.asked)
    reward(["ab"], ["abc"], bonus=[0.0])
    assert model.asked[4:] == [again[1], again[3]]  # the same text is answered the same, whatever is beside it
    assert torch.isnan(reward([""], ["a"], bonus=[0.0])).all()


def test_hindsight_is_the_mean_of_what_the_judge_says_of_outcomes() -> None:
    seen: list[Any] = []

    def simulator(talks: list[Any], seeds: list[int]) -> list[Any]:
        return [None if talk[-1]["content"] == "?" else ["good", "bad"][seed % 2] for talk, seed in zip(talks, seeds, strict=True)]

    def judge(outputs: list[str], prompts: list[Any], *, weight: list[float]) -> Tensor:
        seen.extend(zip(outputs, prompts, strict=True))
        return torch.tensor([more * (text == "good") for text, more in zip(outputs, weight, strict=True)], dtype=torch.float64)

    reward = mm.rewards.hindsight(judge, simulator=simulator, samples=200)
    scores = reward(["yes", "?"], ["Is it?", "Is it?"], weight=[2.0, 2.0])
    assert scores[0] == pytest.approx(1.0, abs=0.4) and scores.isnan().tolist() == [False, True]  # .07 a standard deviation
    assert seen[0][1] == [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}]
    assert {outcome for outcome, _ in seen} == {"good", "bad"}
    assert torch.equal(reward(["yes"], ["Is it?"], weight=[2.0]), scores[:1])


def test_hindsight_reads_whole_conversations_and_turns() -> None:
    talks: list[Any] = []

    def simulator(conversations: list[Any]) -> list[Any]:
        talks.extend(conversations)
        return [[{"role": "tool", "content": "12"}, {"role": "user", "content": "12?"}] for _ in conversations]

    reward = mm.rewards.hindsight(lambda outputs, prompts: torch.tensor([float(len(text)) for text in outputs]), simulator=simulator)
    output = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    assert reward([output], [[{"role": "user", "content": "0"}]]).tolist() == [len("12\n12?")]
    assert "".join(turn["content"] for turn in talks[0]) == "0abc"


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="through: got int"):
        mm.rewards.through(3, policy=Echo())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="policy=int, takes a reward, and a policy"):
        mm.rewards.through(longer, policy=3)
    with pytest.raises(UserError, match="simulator=int"):
        mm.rewards.hindsight(longer, simulator=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gave 0 outcomes of 1 answers"):
        mm.rewards.hindsight(lambda outputs, prompts: torch.zeros(1), simulator=lambda talks: [])(["a"], ["b"])


def test_a_simulated_user_sees_the_roles_turned_round_and_says_when_it_is_over() -> None:
    class User:
        def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
            self.prompts, self.seeds, self.call = prompts, seeds, call
            return [" And then? ", "GOODBYE", " "][: len(prompts)]

    model = User()
    environment = mm.environments.simulated_user(model, words="You ask.", call={"temperature": 0.5})
    talk = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<t>x</t>"},
        {"role": "tool", "content": "9"}, {"role": "assistant", "content": "Nine."},
    ]  # fmt: skip
    assert environment([talk] * 3, seeds=[1, 2, 3]) == ["And then?", None, None]
    assert model.seeds == [1, 2, 3] and model.call == {"temperature": 0.5}
    assert [(turn["role"], turn["content"]) for turn in model.prompts[0]] == [
        ("system", "You ask."), ("assistant", "Hi"), ("user", "<t>x</t>\nNine."),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"simulated_user\.policy: got a int"):
        mm.environments.simulated_user(3)


class Rewriter:
    """Makes every answer end in "at noon"."""

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
        assert call == {"top_k": 1}
        return [prompt.partition("|")[2].rsplit(" ", 2)[0] + " at noon" for prompt in prompts]


def test_words_that_a_rewriter_leaves_are_worth_1_and_others_cost_1() -> None:
    reward = mm.rewards.rewriting(Rewriter(), words="|{answer}", at_once=1)
    first, empty, right = reward(["we  meet at dusk", " ", "come at noon"], ["When?"] * 3)
    assert first == [(0, 2, 1.0), (4, 8, 1.0), (9, 11, 1.0), (12, 16, -1.0)] and empty is None
    assert [score for _, _, score in right] == [1.0, 1.0, 1.0]
    text, better = "we then meet at dusk", "we meet at noon"
    by = {
        match: [score for _, _, score in mm.rewards.rewriting(Fixed(better), match=match)([text], ["When?"])[0]]
        for match in ("beginning", "aligned")
    }
    assert by == {"beginning": [1.0, -1.0, -1.0, -1.0, -1.0], "aligned": [1.0, -1.0, 1.0, 1.0, -1.0]}
    longer = mm.rewards.rewriting(Fixed("we meet"))(["we meet so"], ["When?"])[0]
    assert [score for _, _, score in longer] == [1.0, 1.0, -1.0]  # what it takes away is not left
    with pytest.raises(UserError, match=r"rewriting\.policy: got str, takes a policy of a language model"):
        mm.rewards.rewriting("words")


class Fixed:
    """Writes one thing."""

    def __init__(self, text: str):
        self.text = text

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
        return [self.text] * len(prompts)


def test_a_reward_is_asked_under_principles_that_may_change() -> None:
    asked: list[Any] = []

    def reward(outputs: list[str], prompts: list[Any], *, bonus: list[float]) -> Tensor:
        asked.extend(prompts)
        return torch.tensor(bonus, dtype=torch.float64)

    under = mm.rewards.by_principles(reward, principles=["Be brief.", "Be kind."], words="|{principles}")
    talk = [{"role": "user", "content": "Why?"}]
    assert under(["so", "so"], ["Why?", talk], bonus=[1.0, 2.0]).tolist() == [1.0, 2.0] and under.reads == {"bonus"}
    assert asked == ["Why?|Be brief.\nBe kind.", [{"role": "user", "content": "Why?|Be brief.\nBe kind."}]]
    with pytest.raises(UserError, match=r"by_principles: got \[\], words .*, takes sentences"):
        mm.rewards.by_principles(reward, principles=[])
