"""Rows of a group that somebody else draws: against a straight line of the same draws, one row at a time and without a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.needs import OLD
from mmalign.policies.language.drawing.drawing import pick
from mmalign.samplers.assignment import assignment
from mmalign.types import Behavior, UserError
from tests.helpers.tiny_text import model, tokenizer

MIXTURE = Behavior("mixture", {"current": 0.7, "ref": 0.3}, part=0.25)
GREEDY = Behavior("greedy", {"current": 1.0}, part=0, greedy=True)
PROMPTS = ["ab", "the cat"]


def moved(lora=None):
    """A policy that has left its reference."""
    policy = mm.policies.transformers(model("llama"), tokenizer(), max_completion=6, temperature=0.8, lora=lora)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters().values()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return policy


def alone(policy, prompt, uniform, shares, how):
    """One completion: all logits again for every token."""
    ids, drawn = list(policy.chat.prompt(prompt).ids), []
    for number in uniform:
        mixed = torch.zeros(())
        for name, share in shares.items():
            with policy.using(name), torch.no_grad():
                mixed = mixed + share * policy.model(input_ids=torch.tensor([ids + drawn])).logits[:, -1].double()
        drawn.append(int(pick(mixed, number[None], how)[0]))
        if drawn[-1] in how.stops.tolist():
            break
    return drawn


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_every_row_is_drawn_by_the_one_whose_seat_it_is(lora) -> None:
    policy = moved(lora)
    reference = Behavior("ref", {"ref": 1.0}, part=0.25)
    rollout = policy.sample(PROMPTS, 4, torch.Generator().manual_seed(0), behaviors=(MIXTURE, reference, GREEDY))
    uniform = torch.rand((10, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = [{"current": 1.0}, {"current": 1.0}, MIXTURE.shares, {"ref": 1.0}, {"current": 1.0}]
    drawn = []
    for row in range(10):
        how = policy.drawing._replace(temperature=0.0) if row % 5 == 4 else policy.drawing
        wanted = alone(policy, PROMPTS[row // 5], uniform[row], shares[row % 5], how)
        drawn.append(rollout.held.tokens[row, : len(wanted)].tolist())
        assert drawn[-1] == wanted and int(rollout.held.lengths[row]) == len(wanted)
    assert rollout.group.tolist() == [0] * 5 + [1] * 5 and rollout.prompts == [PROMPTS[0]] * 5 + [PROMPTS[1]] * 5
    assert {name: rows.nonzero().flatten().tolist() for name, rows in rollout.drawn.items()} == {
        "mixture": [2, 7],
        "ref": [3, 8],
        "greedy": [4, 9],
    }
    assert not rollout.mask[[4, 9]].any() and rollout.mask[:4].any(1).all()


def test_what_the_current_policy_says_is_recorded_of_every_row() -> None:
    policy = moved()
    rollout = policy.sample(PROMPTS, 4, torch.Generator().manual_seed(0), behaviors=(MIXTURE,))
    steps = policy.steps(rollout, torch.arange(8), needs=frozenset({OLD}))
    torch.testing.assert_close(steps.log_probs.detach(), rollout.log_probs)
    assert rollout.metrics["engine_difference_max"] < 1e-5  # of its own rows


def test_assignment() -> None:
    assert assignment(8, ()).tolist() == [0] * 8
    assert assignment(8, (Behavior("ref", {"ref": 1.0}), GREEDY)).tolist() == [0] * 4 + [1] * 4 + [2]
    assert assignment(2, (Behavior("ref", {"ref": 1.0}, part=0.1),)).tolist() == [0, 1]
    with pytest.raises(UserError, match=r"batch\.group: got 1, takes more: the policy and ref all draw rows of each group"):
        assignment(1, (Behavior("ref", {"ref": 1.0}),))


def test_a_mixture_is_refused_where_a_cache_is_not_known() -> None:
    policy = moved()
    unknown = replace(policy.drawer, fit=replace(policy.fit, shared=False))
    with pytest.raises(
        UserError, match="behavior: got current, ref; LlamaForCausalLM has no cache to mix distributions with, takes one set"
    ):
        unknown([[3, 4]], torch.zeros(1, dtype=torch.int64), torch.rand((1, 6)).double(), policy.drawing, shares=MIXTURE.shares)
