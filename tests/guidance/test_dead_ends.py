"""Dead ends: their value is learned from texts that ended badly, and a model that is held to it ends badly less often."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import mmalign as mm
from mmalign.needs import DEAD_END, refs
from mmalign.objectives.terms.dead_ends import backed_up
from mmalign.policies.language.scoring.heads import TRIED, best_of_draws
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

LENGTH = 3
BAD = "x"  # the letter after which nothing helps, and which the model below likes


def peaked() -> Any:
    """A model that says the bad letter in a third of cases, about, whatever came before."""
    made = tiny_text.model("llama")
    letters = [len(tiny_text.SPECIAL) + tiny_text.LETTERS.index(letter) for letter in BAD]
    with torch.no_grad():
        mean = made.base_model(input_ids=torch.arange(6, 50).view(-1, 2)).last_hidden_state.mean((0, 1))
        made.lm_head.weight.mul_(0.1)
        made.lm_head.weight[letters] += 3.2 * mean / mean.square().sum()
    return made


def without(outputs: list[str], prompts: list[str], **_: Any) -> torch.Tensor:
    return torch.tensor([0.0 if set(output) & set(BAD) else 1.0 for output in outputs])


def policy(**settings: Any) -> Any:
    return transformers(peaked(), tiny_text.tokenizer(), max_completion=LENGTH, heads=["dead_end"], **settings)


def test_targets_are_the_best_that_may_follow_and_the_end_is_what_it_is() -> None:
    best = torch.tensor([[-0.1, -0.2, -0.3], [-0.4, -0.5, -0.6]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    targets = backed_up(best, mask, torch.tensor([0.0, 1.0]))
    assert targets[mask].tolist() == pytest.approx([-0.2, -0.3, 0.0, -0.5, -1.0])


def test_the_best_of_some_draws_is_the_mean_of_maxima_over_all_of_them() -> None:
    values = torch.tensor([[-0.5, -0.1, -0.9], [0.0, -0.3, -0.2]]).double()
    chances = torch.tensor([[0.2, 0.7, 0.1], [0.0, 0.25, 0.75]]).double()
    for count in (1, 3):
        for row, (value, chance) in enumerate(zip(values, chances, strict=True)):
            every = [(math.prod(chance[[*draw]].tolist()), float(value[[*draw]].max())) for draw in product(range(3), repeat=count)]
            best = float(best_of_draws(values, chances.log(), count)[row])
            assert best == pytest.approx(sum(share * most for share, most in every), abs=1e-12)


def test_the_tables_are_of_the_word_that_was_said_and_of_the_best_that_the_model_may_say() -> None:
    made = policy(temperature=0.7)
    made.sets.keep("start")
    with torch.no_grad():
        made.model.lm_head.weight.neg_()  # what draws is the model as it was
        made.heads["dead_end"].weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(0))
        made.heads["dead_end"].bias[min(made.chat.never)] = -50.0  # the safest of all, if it could be said
    rollout = made.encode(["ab"], ["cd"], torch.tensor([0]), torch.Generator())
    assert "dead_end_best" not in made.steps(rollout, torch.tensor([0]), needs=frozenset({DEAD_END})).terms
    made.remember(rollout, ["start"], 1)
    steps = made.steps(rollout, torch.tensor([0]), needs=frozenset({DEAD_END, refs("start")}))
    prompt, row = made.chat.prompt("ab").ids, made.chat.row("ab", "cd").completion
    ids, first = torch.tensor([[*prompt, *row]]), peaked()
    with torch.no_grad():
        each = -torch.sigmoid(made.heads["dead_end"](made.model.base_model(input_ids=ids).last_hidden_state[0].float()).double())
        logits = first(input_ids=ids).logits[0].double() / 0.7
    logits[:, sorted(made.chat.never)] = -torch.inf
    for place, token in enumerate(row):
        values, before = each[len(prompt) + place - 1], logits[len(prompt) + place - 1]
        assert float(steps.terms["dead_end"][0, place]) == pytest.approx(float(values[token]), abs=1e-5)
        best = float(best_of_draws(values[None], before.log_softmax(0)[None], TRIED)[0])
        assert float(steps.terms["dead_end_best"][0, place]) == pytest.approx(best, abs=1e-5)


def learned_value(then: Literal["best", "said"], folder: Path) -> Any:
    torch.manual_seed(0)
    run = mm.online(
        policy(), prompts=["ab", "cd"], rewards={"without": without}, method=mm.methods.dead_end_value(then=then), steps=24,
        batch={"prompts": 2, "group": 32, "micro_rows": 128}, optimizer=mm.adamw(rate=5e-2), evaluation={"every": 24},
        run={"folder": str(folder), "name": "run", "trackers": (), "checkpoint_every": 24},
    )  # fmt: skip
    return run.policy


def of_letters(policy: Any, text: str) -> tuple[float, float]:
    """The value of the bad letter after a text, and the mean of the others."""
    words = policy.chat.tokenizer
    each = mm.guidance.dead_ends(policy)(torch.tensor([words(text)["input_ids"]]))[0]
    good = torch.tensor([words.convert_tokens_to_ids(letter) for letter in tiny_text.LETTERS if letter not in BAD])
    return float(each[words.convert_tokens_to_ids(BAD)]), float(each[good].mean())


def test_what_the_last_word_says_goes_back_to_the_first_and_safe_words_stay_safe(tmp_path: Path) -> None:
    bad, good = of_letters(learned_value("best", tmp_path), "ab")  # two words before the end
    assert bad < -0.5 and good > -0.25


def test_the_value_is_learned_and_the_bound_keeps_texts_out(tmp_path: Path) -> None:
    base = peaked()
    start = {name: value.detach().clone() for name, value in base.state_dict().items()}
    learned = learned_value("said", tmp_path)
    value = mm.guidance.dead_ends(learned)
    bad_value, good_value = of_letters(learned, "ab")
    assert bad_value < good_value - 0.3
    words: Any = learned.chat.tokenizer
    ids, bad = torch.tensor([words("ab")["input_ids"]]), torch.tensor([words.convert_tokens_to_ids(BAD)])

    assert all(torch.equal(value, base.state_dict()[name]) for name, value in start.items())
    never = learned.chat.never

    def share(*processors: Any) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = base.generate(
                input_ids=ids.repeat(400, 1), do_sample=True, top_k=0, max_new_tokens=LENGTH, min_new_tokens=LENGTH,
                bad_words_ids=[[token] for token in sorted(never) if token != 2], logits_processor=[*processors],
            )  # fmt: skip
        return float(torch.isin(made[:, ids.shape[1] :], bad).any(1).double().mean())

    free, held = share(), share(*mm.guidance.rectified(dead_end=value))
    assert free > 0.3 and held < 0.5 * free


def test_a_policy_without_the_head_is_refused_in_one_line() -> None:
    plain = transformers(tiny_text.model("llama"), tiny_text.tokenizer(), max_completion=LENGTH)
    with pytest.raises(UserError, match=r"dead_ends\.policy: has no head dead_end"):
        mm.guidance.dead_ends(plain)
