"""Several turns in a rollout: what is said stays as it was said, and what the environment says is nobody's to learn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import SEGMENT, refs
from mmalign.policies.language.drawing.drawing import Drawn
from mmalign.policies.settings import EngineSettings, Turns
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import UserError
from mmalign.worlds.calculator import base

GOOD = ("<calculate> 13 * 14 </calculate> <|end|>", "<calculate> 182 + 87 </calculate> <|end|>", "269 <|end|>")
PROMPT = "13 * 14 + 87"


@dataclass
class Script:
    """Draws what it is told to: lines of each row, one for each turn; the tokens that it drew behind are noted."""

    words: Any
    lines: Sequence[Sequence[str]]
    seen: list[list[tuple[int, ...]]] = field(default_factory=list)
    turns: dict[int, int] = field(default_factory=dict)
    numbers: list[Tensor] = field(default_factory=list)

    def by_behaviors(self, ids: Any, of: Tensor, numbers: Tensor, drawing: Any, who: Tensor, behaviors: Any, extras: Any) -> Drawn:
        self.numbers.append(numbers)
        self.seen.append([tuple(ids[place]) for place in of.tolist()])
        rows = list(range(len(of))) if not self.turns else [row for row in self.turns if len(self.lines[row]) > self.turns[row]]
        said = [self.words.convert_tokens_to_ids(self.lines[row][self.turns.get(row, 0)].split()) for row in rows][: len(of)]
        self.turns |= {row: self.turns.get(row, 0) + 1 for row in rows}
        said = [line[: numbers.shape[1]] for line in said]
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(line) for line in said], batch_first=True)
        cut = torch.tensor([line[-1] not in drawing.stops.tolist() for line in said])
        nothing, none = torch.full(tokens.shape, torch.nan, dtype=torch.float64), torch.zeros((*tokens.shape, 0), dtype=torch.uint8)
        return Drawn(tokens, torch.tensor([len(line) for line in said]), cut, nothing, none)


def calculating() -> Callable[..., Any]:
    return mm.environments.tools({"calculate": mm.environments.calculator(operations=1)})


def policy(environment: Any = None, *, lines: Sequence[Sequence[str]] | None = None, **settings: Any) -> TransformersPolicy:
    turns = settings.pop("turns", None) or Turns(environment=environment or calculating(), limit=settings.pop("limit", 4))
    settings = {"max_completion": 40, "device": "cpu"} | settings
    made = mm.policies.transformers(base.untrained(width=32, layers=1), turns=turns, **settings)
    if lines is not None:
        made.drawer = Script(made.chat.tokenizer, lines)  # type: ignore[assignment]
    return made


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_conversation_is_one_row_and_the_replies_are_outside_of_its_mask() -> None:
    made = policy(lines=[GOOD, ("7 <|end|>",)])
    rollout = made.sample([PROMPT], 2, rng())
    words = made.chat.tokenizer.convert_ids_to_tokens(rollout.held.tokens[0].tolist())
    replies = " <|tool|> 182 <|end|> <|assistant|> ", " <|tool|> 269 <|end|> <|assistant|> "
    assert " ".join(words) == GOOD[0] + replies[0] + GOOD[1] + replies[1] + GOOD[2]
    own = [word for word, counts in zip(words, rollout.mask[0].tolist(), strict=True) if counts]
    assert " ".join(own) == " ".join(GOOD)
    assert rollout.mask[1].sum() == 2 and rollout.held.lengths.tolist() == [len(words), 2]
    assert [turn["role"] for turn in rollout.outputs[0]] == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert rollout.outputs[0][-1]["content"] == "269" and rollout.outputs[1] == [{"role": "assistant", "content": "7"}]
    assert rollout.metrics["turns"] == 2.0 and rollout.metrics["environment_errors"] == 0.0
    assert rollout.metrics["length"] == (len(own) + 2) / 2
    assert mm.rewards.exact_match()(rollout.outputs, rollout.prompts, answer=["269", "269"]).tolist() == [1.0, 0.0]


def test_every_token_of_a_row_has_a_number_of_its_own() -> None:
    made = policy(lines=[GOOD])
    made.sample([PROMPT], 1, rng(7))
    whole = torch.rand((1, 1, 40), generator=rng(7), dtype=torch.float64)[0]
    first, second, third = made.drawer.numbers  # type: ignore[attr-defined]
    assert torch.equal(first, whole) and torch.equal(second, whole[:, 10:]) and torch.equal(third, whole[:, 20:])


def test_a_conversation_that_is_given_is_the_one_that_was_sampled() -> None:
    made = policy(lines=[GOOD])
    sampled = made.sample([PROMPT], 1, rng())
    given = made.encode([PROMPT], sampled.outputs, torch.tensor([0]), rng())
    assert torch.equal(given.held.tokens, sampled.held.tokens) and torch.equal(given.mask, sampled.mask)
    rows = torch.tensor([0])
    torch.testing.assert_close(made.steps(given, rows).log_probs, made.steps(sampled, rows).log_probs, rtol=0, atol=0)


def test_ids_that_were_sampled_are_never_made_again() -> None:
    """Words that the tokenizer would read otherwise, and a second end in a row: the next turn stands behind these very ids."""
    odd = ("<calculate> 13 * 14 </calculate> <unk> <|end|>", "182 <|end|>")
    made = policy(lambda talks: ["and"] * len(talks), lines=[odd], limit=2)
    rollout = made.sample([PROMPT], 1, rng())
    first = tuple(made.chat.tokenizer.convert_tokens_to_ids(odd[0].split()))
    prompt = made.chat.prompt(PROMPT).ids
    behind = made.drawer.seen[1][0]  # type: ignore[attr-defined]
    assert behind[: len(prompt) + len(first)] == (*prompt, *first)
    assert behind == (*prompt, *rollout.held.tokens[0, : len(behind) - len(prompt)].tolist())


@pytest.mark.parametrize("shared", [True, False])
def test_tokens_of_the_environment_have_no_gradient(shared: bool) -> None:
    """The gradient of a loss on every cell is that of the policy's own tokens, computed in straight lines without mmalign."""
    from mmalign.policies.settings import TextMemory

    made = policy(lines=[GOOD, ("7 <|end|>",)], memory=TextMemory(shared_prefixes=shared))
    rollout = made.sample([PROMPT], 2, rng())
    rows, (tokens, lengths) = torch.arange(2), (rollout.held.tokens, rollout.held.lengths)
    weight = torch.rand(rollout.mask.shape, generator=rng(1), dtype=torch.float64)

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(made.parameters().values()))])

    def table() -> Tensor:
        return made.steps(rollout, rows).log_probs

    assert not bool(table()[~rollout.mask].any())
    assert float(gradient((table() * weight * ~rollout.mask).sum()).abs().max()) == 0.0
    prompt = list(made.chat.prompt(PROMPT).ids)
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        ids = torch.tensor([prompt + tokens[row, : lengths[row]].tolist()])
        logits = made.model(input_ids=ids).logits[0].double()
        logits[:, list(made.chat.never)] = -torch.inf
        said = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
        for place in range(int(lengths[row])):
            word = made.chat.tokenizer.convert_ids_to_tokens(int(ids[0, len(prompt) + place]))
            before = made.chat.tokenizer.convert_ids_to_tokens(ids[0, : len(prompt) + place].tolist())
            turn = [w for w in before if w in ("<|user|>", "<|tool|>", "<|assistant|>")][-1]
            if turn == "<|assistant|>" and word not in ("<|tool|>", "<|assistant|>"):
                loss = loss + weight[row, place] * said[place]
    torch.testing.assert_close(gradient((table() * weight).sum()), gradient(loss), rtol=1e-4, atol=1e-5)


def test_every_method_reads_such_rows() -> None:
    """Whatever is needed of the table is there: references, segments by turn, and pairs of conversations."""
    made = policy(lines=[GOOD, ("7 <|end|>",)], segments="turn")
    made.sets.keep("ref")
    rollout = made.sample([PROMPT], 2, rng())
    made.remember(rollout, ["ref"], 8)
    steps = made.steps(rollout, torch.arange(2), needs=frozenset({refs("ref"), SEGMENT}))
    torch.testing.assert_close(steps.refs["ref"], steps.log_probs.detach(), rtol=0, atol=1e-5)
    assert steps.facts["segment"][0][steps.mask[0]].tolist() == [1] * 6 + [2] * 6 + [3] * 2
    dpo = mm.methods.dpo()
    feedback = mm.types.Feedback(torch.tensor([1.0, 0.0]).double(), group=rollout.group, pairs=torch.tensor([[0, 1]]))
    loss = dpo.loss(made.steps(rollout, torch.arange(2), needs=dpo.needs), dpo.signal(feedback))
    value = float((dpo.weigh(rollout.mask) * loss.values.detach()).sum())
    assert value == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-5)


def test_rows_do_not_depend_on_who_is_beside_them() -> None:
    from mmalign.policies.settings import TextMemory

    seen: list[list[int]] = []

    def environment(talks: list[Any], seeds: list[int]) -> list[Any]:
        seen.append(seeds)
        return [str(seed % 400) if len(talk) < 5 else None for talk, seed in zip(talks, seeds, strict=True)]

    def untrained(rows: int) -> TransformersPolicy:
        made = policy(environment, memory=TextMemory(rows_at_once=rows), turns=Turns(environment=environment, max_turn=9))
        ends = torch.arange(40, 300)  # so that a random model comes to ends
        made.drawing = made.drawing._replace(stops=torch.cat([made.drawing.stops, ends]))
        return made

    prompts = [PROMPT, "9 * 9 + 11", "3 * 4 + 50"]
    whole = untrained(64).sample(prompts, 3, rng())
    one = untrained(1).sample(prompts, 3, rng())
    part = untrained(64).sample(prompts, 3, rng(), part=slice(1, 2))
    assert torch.equal(whole.held.tokens, one.held.tokens) and torch.equal(whole.mask, one.mask)
    width = part.mask.shape[1]
    assert torch.equal(part.held.tokens, whole.held.tokens[3:6, :width]) and part.outputs == whole.outputs[3:6]
    assert whole.metrics["turns"] > 1.5 and len({seed for seeds in seen for seed in seeds}) > 9


def test_generate_goes_through_the_environment_too() -> None:
    made = policy(lines=[GOOD])
    script = made.drawer

    class Whole:
        def __call__(self, ids: Any, which: Any, uniform: Any, manner: Any, **_: Any) -> Drawn:
            return script.by_behaviors(ids, which, uniform, manner, None, (), ())  # type: ignore[arg-type]

    made.drawer = Whole()  # type: ignore[assignment]
    traced = made.traced([PROMPT], [0])
    assert traced.outputs[0][-1] == {"role": "assistant", "content": "269"} and traced.held.cut.tolist() == [False]
    assert int(traced.mask.sum()) == 14


def test_limits() -> None:
    one = policy(lines=[GOOD], limit=1).sample([PROMPT], 1, rng())
    assert len(one.outputs[0]) == 1 and one.metrics["turns"] == 1.0
    two = policy(lines=[GOOD], limit=2).sample([PROMPT], 1, rng())
    assert [turn["role"] for turn in two.outputs[0]] == ["assistant", "tool", "assistant"]
    short = policy(lines=[GOOD], max_completion=10).sample([PROMPT], 1, rng())  # 6 + 4 tokens: no room for a word behind the reply
    assert short.held.cut.tolist() == [True] and len(short.outputs[0]) == 1 and short.mask.shape == (1, 6)
    room = policy(lines=[GOOD], max_completion=13).sample([PROMPT], 1, rng())  # three words of the second turn
    assert room.held.cut.tolist() == [True] and room.mask.shape == (1, 13) and len(room.outputs[0]) == 3
    turns = Turns(environment=calculating(), max_turn=5)
    narrow = policy(lines=[GOOD], turns=turns).sample([PROMPT], 1, rng())
    assert narrow.held.cut.tolist() == [True] and len(narrow.outputs[0]) == 1
    with pytest.raises(UserError, match="limit: got 0, takes 1 or more"):
        Turns(environment=calculating(), limit=0)


def _raises(talks: Any) -> Any:
    raise OSError("no connection")


def _hangs(talks: Any) -> Any:
    time.sleep(3600)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (_raises, "policy.turns.environment: raised OSError: no connection"),
        (_hangs, "policy.turns.environment: gave no reply in 0.1 s"),
        (lambda talks: "yes", "got a str for 1 conversations"),
        (lambda talks: [], "got 0 replies for 1 conversations"),
        (lambda talks: [{"role": "assistant", "content": "I"}], "replied a turn of 'assistant'"),
        (lambda talks: [{"role": "user", "content": ""}], "replied a turn of 'user'"),
        (lambda talks: [3], "replied a int"),
    ],
)
def test_an_environment_that_fails_is_one_line(environment: Any, line: str) -> None:
    seconds = 0.1 if environment is _hangs else 300.0
    made = policy(turns=Turns(environment=environment, seconds=seconds), lines=[GOOD])
    with pytest.raises(UserError, match=line):
        made.sample([PROMPT], 1, rng())


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match=r"policy\.turns\.environment: got a int, takes a callable"):
        policy(turns=Turns(environment=3))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"policy\.engine: got turns too"):
        policy(engine=EngineSettings(url="http://localhost:1/v1", model="m"))


def test_errors_of_the_environment_are_counted() -> None:
    wrong = ("<calculate> 13 * 14 + 87 </calculate> <|end|>", "<calculate> 13 ( </calculate> <|end|>", "0 <|end|>")
    rollout = policy(lines=[wrong, GOOD]).sample([PROMPT], 2, rng())
    assert rollout.metrics["environment_errors"] == 1.0
    assert [turn.get("error") for turn in rollout.outputs[0] if turn["role"] == "tool"] == [True, True]


def test_a_template_without_tools_gets_their_words_as_the_user_s() -> None:
    made = policy(lines=[GOOD])
    made.chat.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ '<|' + m.role + '|> ' + m.content + ' <|end|> ' }}{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    rollout = made.sample([PROMPT], 1, rng())
    assert [turn["role"] for turn in rollout.outputs[0]] == ["assistant", "user", "assistant", "user", "assistant"]
    given = made.encode([PROMPT], rollout.outputs, torch.tensor([0]), rng())
    assert torch.equal(given.held.tokens, rollout.held.tokens) and torch.equal(given.mask, rollout.mask)


def test_a_template_that_rewrites_earlier_turns_changes_nothing_of_a_row() -> None:
    """As Qwen3's, which takes the reasoning out of earlier turns, and puts an empty one into the last."""
    made = policy(lines=[GOOD])
    made.chat.tokenizer.chat_template = (
        "{% for m in messages %}{% set c = m.content if loop.last or m.role != 'assistant' else '-' %}"
        "{{ '<|' + m.role + '|> ' }}{% if loop.last and m.role == 'assistant' %}( ) {% endif %}"
        "{{ m.content.replace('13', '') if not loop.last and m.role == 'assistant' else m.content }}{{ ' <|end|> ' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    rollout = made.sample([PROMPT], 1, rng())
    words = made.chat.tokenizer.convert_ids_to_tokens(rollout.held.tokens[0].tolist())
    replies = " <|tool|> 182 <|end|> <|assistant|> ", " <|tool|> 269 <|end|> <|assistant|> "
    assert " ".join(words) == GOOD[0] + replies[0] + GOOD[1] + replies[1] + GOOD[2]


def test_without_a_template_turns_follow_each_other_as_words() -> None:
    made = policy(lambda talks: ["+ 87"] * len(talks), lines=[("13 <|end|>", "14 <|end|>")], template=False, limit=2)
    rollout = made.sample(["13 * 14"], 1, rng())
    assert made.chat.tokenizer.convert_ids_to_tokens(rollout.held.tokens[0].tolist()) == ["13", "<|end|>", "+", "87", "14", "<|end|>"]
    assert rollout.mask[0].tolist() == [True, True, False, False, True, True]


class Coin:
    """Says 7 or 8 by a token's own number, and ends."""

    def __init__(self, words: Any) -> None:
        self.words = words

    def by_behaviors(self, ids: Any, of: Tensor, numbers: Tensor, drawing: Any, who: Tensor, behaviors: Any, extras: Any) -> Drawn:
        seven, eight, end = self.words.convert_tokens_to_ids(["7", "8", "<|end|>"])
        tokens = torch.stack([torch.where(numbers[:, 0] < 0.5, seven, eight), torch.full((len(of),), end)], 1)
        nothing, none = torch.full(tokens.shape, torch.nan, dtype=torch.float64), torch.zeros((*tokens.shape, 0), dtype=torch.uint8)
        return Drawn(tokens, torch.full((len(of),), 2), torch.zeros(len(of), dtype=torch.bool), nothing, none)


class Student:
    """A user who says 7 or 8, by a number of the conversation's own."""

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
        return ["7" if seed % 2 else "8" for seed in seeds]


def test_rows_part_at_a_turn_and_what_stands_before_it_is_context() -> None:
    replies = mm.environments.simulated_user(Student(), over=None)
    made = policy(turns=Turns(environment=replies, limit=4, parting=True), segments="turn")
    made.drawer = Coin(made.chat.tokenizer)  # type: ignore[assignment]
    prompts = [f"{number} * 14 + 87" for number in range(2, 26)]
    rollout = made.sample(prompts, 3, rng())
    apart = policy(turns=Turns(environment=replies, limit=4))
    apart.drawer = Coin(apart.chat.tokenizer)  # type: ignore[assignment]
    whole = apart.sample(prompts, 3, rng())
    tokens, own = rollout.held.tokens.view(24, 3, -1), rollout.mask.view(24, 3, -1)
    runs = whole.mask[0].tolist()
    starts = [place for place, live in enumerate(runs) if live and (not place or not runs[place - 1])]
    assert len(starts) == 4 and torch.equal(tokens[:, 0], whole.held.tokens.view(24, 3, -1)[:, 0])  # the first row is as it was
    turn, differs = [], torch.zeros(24, dtype=torch.bool)
    for number in range(24):
        begins = {int(own[number, row].nonzero()[0]) for row in range(3)}
        (begin,) = begins  # one for all three
        turn.append(starts.index(begin))
        assert all(torch.equal(tokens[number, 0, :begin], tokens[number, row, :begin]) for row in (1, 2))
        assert torch.equal(own[number, 1, begin:], whole.mask[3 * number + 1, begin:])  # replies behind it count as little as ever
        differs[number] = not torch.equal(tokens[number, 0, begin:], tokens[number, 1, begin:])
    assert set(turn) == {0, 1, 2, 3} and bool(differs.double().mean() > 0.6)
    assert [sum(said["role"] == "assistant" for said in talk) for talk in rollout.outputs] == [4] * 72
    segments = made.steps(rollout, torch.arange(72), needs=frozenset({SEGMENT})).facts["segment"].view(24, 3, -1)
    assert all(int(segments[number, 1, starts[place]]) == 1 for number, place in enumerate(turn))
    with torch.no_grad():
        torch.testing.assert_close(made.steps(rollout, torch.arange(72)).log_probs, rollout.log_probs)
