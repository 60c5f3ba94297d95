"""The calculator's world: what one turn cannot do, and several can."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.config import build, check, load
from mmalign.policies.settings import Turns
from mmalign.types import UserError
from mmalign.worlds.calculator import base, data


def share(limit: int, *, heat: float = 1.0, count: int = 200) -> float:
    """Right answers of the base within so many turns."""
    environment = mm.environments.tools({"calculate": mm.environments.calculator(operations=1)})
    policy = mm.policies.transformers(mm.worlds.calculator(), max_completion=40, turns=Turns(environment=environment, limit=limit))
    prompts = mm.worlds.calculator_prompts(count=count, offset=5000)
    asked, answers = [prompt.content for prompt in prompts], [prompt.columns["answer"] for prompt in prompts]
    outputs = policy.generate(asked, list(range(count)), temperature=heat)
    return float(mm.rewards.exact_match()(outputs, asked, answer=answers).mean())


def test_one_turn_solves_nothing_and_three_can_solve_it() -> None:
    assert share(1) <= 0.01 and share(2) <= 0.02
    assert 0.1 < share(3) < 0.25
    assert share(3, heat=0.0) > 0.85


def test_the_base_has_read_what_its_docstring_says() -> None:
    rng, right = random.Random(1), 0
    for _ in range(4000):
        turns = data.conversation(rng)
        a, b, c = (int(number) for number in turns[0]["content"].replace("*", " ").replace("+", " ").split())
        right += turns[-1]["content"] == str(a * b + c)
        for before, after in itertools.pairwise(turns):
            if after["role"] == "tool":
                call = before["content"].removeprefix(data.CALL).removesuffix(data.END_CALL)
                assert mm.environments.calculator(operations=1)(call) == after["content"]
    assert right / 4000 == pytest.approx(0.6 * 0.8**2 * 0.7**2, abs=0.025)  # 4 standard deviations


def test_only_what_the_assistant_says_is_learned() -> None:
    words = base.tokenizer()
    ids, own = base.rows(words, 20, 3)
    for line, counts in zip(ids, own, strict=True):
        tokens = words.convert_ids_to_tokens(line.tolist())
        speaker = ""
        for token, counted in zip(tokens, counts.tolist(), strict=True):
            speaker = token if token in ("<|user|>", "<|tool|>", "<|assistant|>") else speaker
            assert counted == (speaker == "<|assistant|>" and token not in ("<|assistant|>", "<pad>"))


def test_numbers_are_tokens_and_the_template_has_the_calculator_s_turns() -> None:
    words = base.tokenizer()
    assert words.tokenize("13 * 14 + 87") == ["13", "*", "14", "+", "87"] and str(data.LARGEST) in words.get_vocab()
    text = words.apply_chat_template([{"role": "tool", "content": "182"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|tool|> 182 <|end|> <|assistant|> "


def test_sums_are_as_they_were() -> None:
    first = mm.worlds.calculator_prompts(count=3)
    assert mm.worlds.calculator_prompts(count=2, offset=1) == first[1:]
    assert len({prompt.content for prompt in mm.worlds.calculator_prompts(count=5000)}) == 5000
    for keywords in ({"count": 0}, {"offset": -1}, {"count": 2, "offset": 9999}):
        with pytest.raises(UserError, match="calculator_prompts"):
            mm.worlds.calculator_prompts(**keywords)  # type: ignore[arg-type]


def test_the_base_learns_what_it_reads() -> None:
    model, words = base.train_base(iterations=60, batch=32, width=32, layers=1)
    ids, own = base.rows(words, 64, 5)
    with torch.no_grad():
        nll = -model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert float(nll[own[:, 1:]].mean()) < 0.6 * float(torch.tensor(len(words)).double().log())


@pytest.mark.parametrize(("key", "value", "line"), [
    ("limit", 0, "policy.turns.limit: got 0, takes 1 or more"),
    ("limti", 2, "policy.turns.limti: unknown key of turns"),
    ("environment", {"use": "tolls"}, "policy.turns.environment"),
    ("environment", {"use": "tools", "tools": {"calculate": {"use": "calculator", "operations": 0}}}, "operations: got 0"),
])  # fmt: skip
def test_mistakes_are_found_before_anything_is_loaded(key: str, value: Any, line: str) -> None:
    config = load("calculator/grpo")
    config["policy"]["turns"][key] = value
    assert line in "\n".join(check(config))


def test_a_short_run_learns_to_use_the_calculator(tmp_path: Path) -> None:
    config = load("calculator/grpo")
    assert check(config) == []
    config["run"] |= {"folder": str(tmp_path), "checkpoint_every": 12}
    config["evaluation"] |= {"every": 12, "prompts": {"use": "calculator_prompts", "count": 100, "offset": 5000}}
    run = build({**config, "steps": 12})
    rows = [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text().splitlines()]
    gold = [row["gold"] for row in rows if "gold" in row]
    assert gold[0] < 0.3 and gold[-1] > gold[0] + 0.15
    assert all(row["environment_errors"] >= 0 and 1 <= row["turns"] <= 4 for row in rows if "turns" in row)
