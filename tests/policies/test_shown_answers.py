"""Contrasts whose prompt is a function of a row and its partner, and the methods that are made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import contrast
from mmalign.policies.language.scoring.contrasts import others
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import Feedback, Rollout, UserError
from mmalign.worlds.calculator import base

SHOWN = {"revising": "{prompt} * {other}", "keeping": "{prompt} * {own}"}
PROMPTS = ["13 * 14", "13 * 14", "3 + 4", "3 + 4"]
ANSWERS = ["7 8", "9", "11 * 2 + 3", "5"]


def policy(contrasts: dict[str, Any] = SHOWN, **more: Any) -> TransformersPolicy:
    return mm.policies.transformers(base.untrained(width=32, layers=1), max_completion=8, contrasts=contrasts, device="cpu", **more)


def rollout(made: TransformersPolicy) -> Rollout:
    """Two pairs, a reference that is another model, and the numbers under it."""
    given = made.encode(PROMPTS, ANSWERS, torch.tensor([0, 0, 1, 1]), torch.Generator())
    made.sets.keep("ref")
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters().values():
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    made.remember(given, ["ref"], 8)
    return given


def likely(made: TransformersPolicy, prompt: str, answer: str) -> Tensor:
    """``log pi - log ref`` of an answer behind a prompt, in straight lines."""
    total = torch.zeros((), dtype=torch.float64)
    for sign, name in ((1.0, "current"), (-1.0, "ref")):
        head = list(made.chat.prompt(prompt).ids)
        ids = torch.tensor([head + made.chat.ids(answer) + [made.chat.end]])
        with torch.no_grad(), made.using(name):
            logits = made.model(input_ids=ids).logits[0].double()
        logits[:, list(made.chat.never)] = -torch.inf
        total += sign * logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[len(head) - 1 :].sum()
    return total


def test_srpo_through_a_real_policy_is_its_formula() -> None:
    made = policy()
    given, beta, alpha = rollout(made), 0.3, 0.2
    method = mm.methods.srpo(beta=beta, alpha=alpha)
    feedback = Feedback(torch.tensor([1.0, 0, 0, 1]).double(), group=given.group, pairs=torch.tensor([[0, 1], [3, 2]]))
    order = torch.tensor([0, 1, 3, 2])
    signal = method.signal(feedback)[order]
    values = method.loss(made.steps(given, order, needs=method.needs), signal).values
    got = float((method.weigh(given.mask)[order] * values.detach()).sum())
    wanted = 0.0
    for better, worse in ((0, 1), (3, 2)):
        for y, z, target in ((better, worse, 0.5), (worse, better, -0.5)):
            x = PROMPTS[y]
            improved = likely(made, f"{x} * {ANSWERS[z]}", ANSWERS[y])
            same, own = (likely(made, f"{x} * {ANSWERS[row]}", ANSWERS[row]) for row in (z, y))
            ahead = likely(made, x, ANSWERS[y]) - likely(made, x, ANSWERS[z])
            improver = (target - beta * (improved - same)) ** 2
            answerer = (target - beta * (improved - own + ahead)) ** 2
            wanted += float((1 - alpha) * improver + alpha * answerer) / 4  # the mean over both ways of two pairs
    assert got == pytest.approx(wanted, rel=1e-5)


def test_mapl_under_changed_instructions_is_its_formula() -> None:
    made = policy({"changed": "{prompt} - 5"})
    given, beta, weight = rollout(made), 0.3, 0.7
    method = mm.methods.mapl(beta=beta, weight=weight, changed="changed")
    feedback = Feedback(torch.tensor([1.0, 0, 0, 1]).double(), group=given.group, pairs=torch.tensor([[0, 1], [3, 2]]))
    order = torch.tensor([0, 1, 3, 2])
    values = method.loss(made.steps(given, order, needs=method.needs), method.signal(feedback)[order]).values
    got = float((method.weigh(given.mask)[order] * values.detach()).sum())
    wanted = 0.0
    for better, worse in ((0, 1), (3, 2)):
        own = [likely(made, PROMPTS[row], ANSWERS[row]) for row in (better, worse)]
        other = [likely(made, f"{PROMPTS[row]} - 5", ANSWERS[row]) for row in (better, worse)]
        costs = [torch.nn.functional.softplus(-beta * (d - e)) for d, e in zip(own, other, strict=True)]
        wanted += float(torch.nn.functional.softplus(-beta * (own[0] - own[1])) + weight * (costs[0] + costs[1]) / 2) / 2
    assert got == pytest.approx(wanted, rel=1e-5)


def test_a_row_of_two_pairs_has_the_partner_of_each() -> None:
    made = policy()
    given = made.encode(PROMPTS[:1] * 3, ANSWERS[:3], torch.tensor([0, 0, 0]), torch.Generator())
    needs = frozenset({contrast("revising")})
    twice = made.steps(given, torch.tensor([0, 1, 0, 2]), needs=needs).contrasts["revising"].log_probs
    for rows, place in ((torch.tensor([0, 1]), slice(0, 2)), (torch.tensor([0, 2]), slice(2, 4))):
        alone = made.steps(given, rows, needs=needs).contrasts["revising"].log_probs
        torch.testing.assert_close(twice[place], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(twice[0], twice[2])


def test_answers_are_put_in_as_they_are_and_conversations_stay() -> None:
    made = policy({"revising": "( {other} ) {prompt}"})
    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3 + 4"}]
    given = made.encode([talk, talk], ["5 6", "7"], torch.tensor([0, 0]), torch.Generator())
    behind = others(
        given.held, "revising", rows=(torch.arange(2), given.group), systems=made.contrasts, ablation=made.ablation, room=made.room
    )
    words = [made.chat.words(prompt.ids) for prompt in behind.encoded]
    start = "<|user|> 1 <|end|> <|assistant|> 2 <|end|> <|user|> ( "
    assert words == [f"{start}{answer} ) 3 + 4 <|end|> <|assistant|>" for answer in ("7", "5 6")]


def test_rows_without_a_partner_are_refused() -> None:
    made = policy()
    given = rollout(made)
    with pytest.raises(UserError, match="rows that do not stand in pairs"):
        made.steps(given, torch.tensor([0, 2]), needs=frozenset({contrast("revising")}))
    with pytest.raises(UserError, match="rows that do not stand in pairs"):
        made.steps(given, torch.tensor([0]), needs=frozenset({contrast("revising")}))
    made.steps(given, torch.tensor([0]), needs=frozenset({contrast("keeping")}))


def test_sdpo_judges_each_token_by_the_policy_that_was_shown_the_better_answer() -> None:
    """Token by token through a real model; the gradient is that of the worse rows' log-probabilities alone."""
    made = policy({"taught": "{prompt} * {other}"})
    given = rollout(made)
    method = mm.methods.sdpo()
    feedback = Feedback(torch.tensor([1.0, 0, 0, 1]).double(), group=given.group, pairs=torch.tensor([[0, 1], [3, 2]]))
    order = torch.tensor([0, 1, 3, 2])
    values = method.loss(made.steps(given, order, needs=method.needs), method.signal(feedback)[order]).values
    got = (method.weigh(given.mask)[order] * values).sum()

    def each(prompt: str, answer: str) -> Tensor:
        head = list(made.chat.prompt(prompt).ids)
        ids = torch.tensor([head + made.chat.ids(answer) + [made.chat.end]])
        logits = made.model(input_ids=ids).logits[0].double()
        logits[:, list(made.chat.never)] = -torch.inf
        return logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[len(head) - 1 :, 0]

    wanted = torch.zeros((), dtype=torch.float64)
    for better, worse in ((0, 1), (3, 2)):
        own, taught = each(PROMPTS[worse], ANSWERS[worse]), each(f"{PROMPTS[worse]} * {ANSWERS[better]}", ANSWERS[worse])
        wanted = wanted - ((taught - own).detach() * own).mean() / 2
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    p = made.parameters()["model.embed_tokens.weight"]
    ours, theirs = (torch.autograd.grad(loss, p)[0] for loss in (got, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
