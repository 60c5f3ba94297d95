"""A model's own log-probability as reward, where every answer can be counted out: what sharpens on it grows likelier under the base."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.config import build_part
from mmalign.policies.settings import TextMemory
from mmalign.types import UserError
from mmalign.worlds.text.optimum import Optimum, text_optimum
from tests.worlds.test_text import tiny, vowels

PROMPT, TOKENS = "a b", 3


def peaked() -> tuple[Any, Any]:
    """A language model of six words that prefers some of them."""
    model, tokenizer = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(12.0)
        model.lm_head.weight[3].zero_()  # an end is as likely as a word, so that few answers are empty
    return model, tokenizer


def around(model: Any) -> Any:
    return mm.policies.transformers(model, max_completion=TOKENS, truncate="right", memory=TextMemory(rows_at_once=64))


@cache
def base() -> Optimum:
    return text_optimum(*peaked(), PROMPT, vowels, tokens=TOKENS, beta=1.0)


@cache
def rewards() -> Tensor:
    """``[N]``: of every answer, NaN for the empty one."""
    with pytest.warns(UserWarning, match="self_log_prob: cannot read an output, which has no score then: completion: got an empty one"):
        return mm.rewards.self_log_prob(around(peaked()))(base().texts, [PROMPT] * len(base().texts))


def test_it_is_what_was_counted_out() -> None:
    empty = torch.tensor([not text for text in base().texts])
    assert int(empty.sum()) == 1 and bool(rewards()[empty].isnan().all())
    wanted = base().base.log()[~empty]
    assert float(wanted.max() - wanted.min()) > 3
    torch.testing.assert_close(rewards()[~empty], wanted, rtol=0, atol=1e-5)


def test_the_best_of_n_by_it_is_likelier_under_the_base() -> None:
    known = torch.tensor([bool(text) for text in base().texts])
    law, scores = torch.where(known, base().base, 0.0), rewards().nan_to_num(-math.inf)
    draws = torch.multinomial(law, 4000 * 16, replacement=True, generator=torch.Generator().manual_seed(0)).view(-1, 16)
    means = [float(base().base.log()[draws.gather(1, scores[draws[:, :count]].argmax(1, keepdim=True))].mean()) for count in (1, 2, 4, 16)]
    assert means[0] == pytest.approx(float((law / law.sum()) @ base().base.log()), abs=0.1)
    assert all(after > before + 0.2 for before, after in pairwise(means))
    assert means[-1] <= float(base().base[known].max().log()) + 1e-9


@pytest.mark.parametrize("name", ["raft", "dr_grpo"])
def test_training_on_it_sharpens_the_model_and_the_reward_stays_the_base_s(name: str, tmp_path: Any) -> None:
    """The mean of ``log pi_base`` under the policy rises, and so does the likeliest answer's own probability; both counted out."""
    model, tokenizer = peaked()
    policy = around((model, tokenizer))
    reward = mm.rewards.self_log_prob(policy)  # the policy that is trained: what counts is what it began with
    method = mm.methods.raft() if name == "raft" else mm.methods.dr_grpo(clip=0.5, beta=0.5, length=TOKENS)
    mm.online(
        policy, [PROMPT], {"self": reward}, method, steps=12,
        batch={"prompts": 1, "group": 32, "missing": "drop"}, optimizer=mm.adamw(rate=0.01),
        evaluation={"every": 12, "samples": 4}, run={"name": name, "folder": str(tmp_path), "trackers": (), "checkpoint_every": 1000},
    )  # fmt: skip
    now = text_optimum(model, tokenizer, PROMPT, vowels, tokens=TOKENS, beta=1.0)
    order = {text: number for number, text in enumerate(now.texts)}
    law = now.base[[order[text] for text in base().texts]]
    before, after = float(base().base @ base().base.log()), float(law @ base().base.log())
    likeliest = int(rewards().nan_to_num(-math.inf).argmax())
    assert after > before + 0.5 and float(law[likeliest]) > 1.5 * float(base().base[likeliest])
    still = reward(base().texts[1:20], [PROMPT] * 19)
    torch.testing.assert_close(still, rewards()[1:20], rtol=0, atol=1e-5, equal_nan=True)


def test_a_config_says_it_and_what_is_no_language_model_is_refused() -> None:
    node = {"self": {"use": "self_log_prob", "policy": {"use": "transformers", "model": {"use": "text"}, "max_completion": 8}}}
    scorer = build_part({"use": "online", "rewards": node}, "rewards")["self"]
    assert bool(scorer(["the file ."], ["the name of"]).isfinite().all())
    with pytest.raises(UserError, match=r"self_log_prob.policy: got str, takes a policy of a language model \(kind token\)"):
        mm.rewards.self_log_prob("model")
