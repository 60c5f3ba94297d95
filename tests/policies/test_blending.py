"""What a model says when it reads its own guesses: against a straight forward on embeddings mixed by hand."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.needs import contrast
from mmalign.types import UserError
from tests.helpers.tiny_text import model, tokenizer

NEEDS = frozenset({contrast("blended")})


def made(name="llama", **more):
    return mm.policies.transformers(model(name), tokenizer(), max_completion=6, **more)


def straight(policy, rollout, row, share):
    """Log-probabilities of one row, and the tokens that the policy would have said."""
    held = rollout.held
    prompt, length = held.prompts[held.which[row]], int(held.lengths[row])
    ids = torch.cat([prompt, held.tokens[row, :length]])[None]
    start, never = len(prompt), policy.scorer.never
    embed = policy.model.get_input_embeddings()
    logits = policy.model(input_ids=ids).logits.index_fill(-1, never, -1e9)
    guess = ids.clone()
    guess[0, start:] = logits[0, start - 1 : -1].argmax(-1)
    read = policy.model(inputs_embeds=(1 - share) * embed(ids) + share * embed(guess)).logits.index_fill(-1, never, -1e9)
    expected = read[0, start - 1 : -1].double().log_softmax(-1)
    return expected.gather(-1, ids[0, start:, None])[:, 0], guess[0, start:]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_it_is_the_forward_on_mixed_embeddings(name, share):
    policy = made(name, contrasts={"blended": share})
    rollout = policy.sample(["ab", "the cat"], 2, torch.Generator().manual_seed(0))
    steps = policy.steps(rollout, torch.arange(4), needs=NEEDS)
    contrasted = steps.contrasts["blended"].log_probs
    for row in range(4):
        wanted, _ = straight(policy, rollout, row, share)
        torch.testing.assert_close(contrasted[row, : len(wanted)], wanted, rtol=1e-4, atol=1e-4)
    assert not contrasted[~steps.mask].any()
    plain = torch.allclose(contrasted, steps.log_probs, atol=1e-4)
    assert plain == (share == 0.0)


def test_the_gradient_is_that_of_the_straight_forward():
    policy = made(contrasts={"blended": 0.5})
    rollout = policy.sample(["ab"], 2, torch.Generator().manual_seed(0))
    parameters = list(policy.parameters().values())
    got = torch.autograd.grad(policy.steps(rollout, torch.arange(2), needs=NEEDS).contrasts["blended"].log_probs.sum(), parameters)
    wanted = torch.autograd.grad(sum(straight(policy, rollout, row, 0.5)[0].sum() for row in range(2)), parameters)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not policy.model.get_input_embeddings()._forward_hooks


def test_a_share_is_a_share():
    with pytest.raises(UserError, match=r"contrasts: got \{'blended': 1\.5\}, takes 0 to 1"):
        made(contrasts={"blended": 1.5})
