"""Heads on hidden states: against straight forwards of the model, one row at a time."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

import mmalign as mm
from mmalign.needs import ACTIVATION, DEGREE, KL_MASK, REWARD_MASK, REWARDS, refs, reverse_kls
from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.language.scoring.heads import DEGREES, KINDS, HeadName, degrees
from mmalign.records import Pair
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers


def make(heads, **more):
    return transformers(tiny_text.model(), tiny_text.tokenizer(), **{"max_completion": 9, "heads": heads, **more})


def rollout_of(policy):
    rollout = policy.sample(["hello there, you", "abc"], 3, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"], 6)
    return rollout


def states(policy, prompt, tokens):
    """``[T, H]``: of each token, the hidden state that it is read off, by a plain forward of prompt and tokens."""
    hidden = policy.model.base_model(input_ids=torch.cat([prompt, tokens]).unsqueeze(0)).last_hidden_state[0]
    return hidden[len(prompt) - 1 : -1].float()


def row_of(rollout, row):
    held = rollout.held
    return held.prompts[int(held.which[row])], held.tokens[row, : int(held.lengths[row])]


def scatter(policy, size=0.3):
    """Other parameters than those it started from, heads included."""
    for number, p in enumerate(policy.parameters().values()):
        p.data += size * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))


def test_the_heads_that_a_config_may_name_are_those_of_the_table():
    assert {*get_args(HeadName)} == KINDS.keys()


def test_masks_start_at_one_and_are_read_off_the_reference():
    policy = make(["reward_mask", "kl_mask"])
    rollout, needs = rollout_of(policy), frozenset({REWARD_MASK, KL_MASK, refs("ref"), reverse_kls("ref")})
    steps = policy.steps(rollout, torch.arange(6), needs=needs)
    assert torch.equal(steps.terms["reward_mask"], rollout.mask.double()) and torch.equal(steps.terms["kl_mask"], rollout.mask.double())
    scatter(policy)
    values = policy.steps(rollout, torch.arange(6), needs=needs).terms["kl_mask"]
    with policy.using("ref"), torch.no_grad():
        before = [states(policy, *row_of(rollout, row)) for row in range(6)]
    head = policy.heads["kl_mask"]
    for row, hidden in enumerate(before):
        assert torch.allclose(values[row, : len(hidden)], head(hidden).squeeze(-1).relu().double(), atol=1e-5)
    assert bool((values == 0).logical_and(rollout.mask).any()) and bool((values > 0).any())  # the line's bend is on both sides
    values.sum().backward()
    others = [p.grad for name, p in policy.parameters().items() if not name.startswith(("reward_mask", "kl_mask"))]
    assert head.weight.grad.abs().sum() > 0 and all(gradient is None or not gradient.any() for gradient in others)


def test_a_mask_wants_a_reference():
    policy = make(["kl_mask"])
    rollout = policy.sample(["abc"], 2, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="kl_mask: are read off the reference"):
        policy.steps(rollout, torch.arange(2), needs=frozenset({KL_MASK}))


def test_activations_are_the_mean_of_what_all_layers_of_the_reference_hold_before_a_token():
    policy = make([])
    rollout, needs = rollout_of(policy), frozenset({ACTIVATION, refs("ref"), reverse_kls("ref")})
    scatter(policy)
    values = policy.steps(rollout, torch.arange(6), needs=needs).terms["activation"]
    parts = torch.cat([policy.steps(rollout, torch.tensor([row]), needs=needs).terms["activation"] for row in range(6)])
    assert torch.allclose(values, parts, atol=1e-6) and not values.requires_grad
    backbone, seen = policy.model.base_model, []
    for layer in (*backbone.layers[:-1], backbone.norm):  # the last layer's states count behind the norm
        layer.register_forward_hook(lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output))
    for row in range(6):
        prompt, tokens = row_of(rollout, row)
        seen.clear()
        with policy.using("ref"), torch.no_grad():
            backbone(input_ids=torch.cat([prompt, tokens]).unsqueeze(0), use_cache=False)
        layers = [states.reshape(-1, states.shape[-1]) for states in seen]
        assert len(layers) == len(backbone.layers) > 1
        places = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
        by_hand = [sum(float(layer[place].mean()) for layer in layers) / len(layers) for place in places]
        assert values[row, : len(tokens)].tolist() == pytest.approx(by_hand, abs=1e-6)
    with pytest.raises(UserError, match="activation: are read off the reference"):
        policy.steps(policy.sample(["abc"], 2, torch.Generator().manual_seed(0)), torch.arange(2), needs=frozenset({ACTIVATION}))


@pytest.mark.parametrize("kind", range(DEGREES))
def test_a_degree_is_told_from_what_is_left_of_an_answer(kind):
    policy = make(["degree"])
    rollout = rollout_of(policy)
    scatter(policy)
    held, likely = rollout.held, rollout.held.refs["ref"]
    which = torch.full((6,), kind)
    values = degrees(policy.scorer, sequences(rollout.held, torch.arange(6)), rollout.mask, likely, which=which)
    for row in range(6):
        prompt, tokens = row_of(rollout, row)
        count = kind * (len(tokens) - 1) // DEGREES
        gone = set(sorted(range(len(tokens) - 1), key=lambda place: float(likely[row, place]))[:count])
        left = torch.tensor([token for place, token in enumerate(tokens.tolist()) if place not in gone])
        expected = policy.heads["degree"](states(policy, prompt, left)[-1]).double().log_softmax(-1)[kind]
        last = int(held.lengths[row]) - 1
        assert values[row, last].item() == pytest.approx(expected.item(), abs=1e-5)
        assert values[row].count_nonzero() == 1


def test_degrees_do_not_depend_on_the_batch_and_are_not_all_one():
    policy = make(["degree"])
    rollout = rollout_of(policy)
    scatter(policy)
    needs = frozenset({DEGREE, refs("ref")})
    whole = policy.steps(rollout, torch.arange(6), needs=needs).terms["degree"]
    parts = torch.cat([policy.steps(rollout, torch.tensor([row]), needs=needs).terms["degree"] for row in range(6)])
    assert torch.allclose(whole, parts, atol=1e-5)
    assert len({int(tokens.sum()) % DEGREES for tokens in rollout.held.tokens * rollout.mask}) > 1


@pytest.mark.parametrize(("method", "heads"), [("sparsepo", ["reward_mask", "kl_mask"]), ("preference_degree", ["degree"])])
def test_methods_train_their_heads_and_resume_with_them(tmp_path, method, heads):
    records = [Pair(word, "yes yes", "no no no", id=word) for word in ("ab", "cd", "ef")]

    def trained(steps, name, **more):
        policy, run = make(heads), {"name": name, "checkpoint_every": 2, "folder": str(tmp_path), "trackers": ()}
        arguments = {"batch": {"records": 3}, "optimizer": mm.adamw(rate=1e-2), "run": run}
        mm.offline(policy, records, getattr(mm.methods, method)(), steps=steps, **arguments, **more)
        return {name: p.detach().clone() for name, p in policy.parameters().items()}

    once = trained(4, name="once")
    trained(2, name="twice")
    again = trained(4, name="twice", resume=True)
    for name in heads:
        assert not torch.equal(once[f"{name}.weight"], torch.zeros_like(once[f"{name}.weight"]))
    assert once.keys() == again.keys() and all(torch.equal(once[name], again[name]) for name in once)


def test_unknown_heads_are_refused():
    with pytest.raises(UserError, match="heads: got"):
        make(["worth"])


def test_rewards_of_words_arrive_at_the_tokens_that_end_them():
    from mmalign.training.rollouts.feedback import feedback_on

    policy = make(["value"], max_completion=30)
    rollout = policy.sample(["abc"], 8, torch.Generator().manual_seed(3))
    reward = mm.rewards.by_segment(lambda outputs, prompts: [float(len(text)) for text in outputs], unit="word")
    table = feedback_on({"words": reward}, rollout).tables[REWARDS]
    assert any(" " in text for text in rollout.outputs)
    for row, text in enumerate(rollout.outputs):
        letters = [place for place, span in enumerate(rollout.spans()[row]) if span[1] > span[0]]  # a token is a letter here
        ends = {letters[place]: float(len(word)) for word, place in _ends(text)}
        assert {step: table[row, step].item() for step in table[row].nonzero().flatten().tolist()} == ends


def _ends(text):
    place = 0
    for word in text.split():
        place = text.index(word, place) + len(word)
        yield word, place - 1


def test_fine_grained_rlhf_learns_from_them(tmp_path):
    policy = make(["value"])
    reward = mm.rewards.by_segment(lambda outputs, prompts: [float("e" in text) for text in outputs], unit="word")
    run = mm.online(
        policy,
        ["ab", "cd"],
        {"words": reward},
        mm.methods.fine_grained_rlhf(),
        steps=2,
        batch={"prompts": 2, "group": 4},
        optimizer=mm.adamw(rate=1e-3),
        run={"folder": str(tmp_path), "trackers": ()},
    )
    assert run.path
    with pytest.raises(UserError, match="this method reads rewards"):
        mm.online(
            policy,
            ["ab"],
            {"plain": lambda outputs, prompts: [0.0] * len(outputs)},
            mm.methods.fine_grained_rlhf(),
            steps=1,
            batch={"prompts": 1, "group": 2},
            run={"folder": str(tmp_path), "name": "plain", "trackers": ()},
        )
