"""Words that a lagging set of parameters finds unlikely are not said: against a straight line, one row at a time and without a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.needs import ENTROPY, OLD, kls, refs
from mmalign.policies.language.models.likely_words import likely, packed, unpacked
from mmalign.samplers.masking import Masking
from mmalign.types import Behavior, UserError
from tests.helpers.tiny_text import model, tokenizer

PROMPTS = ["ab", "the cat"]
HALF = Masking("masking", 0.5)


def moved(lora=None, **more):
    """A policy that has left its reference, and a masking set that is neither."""
    policy = mm.policies.transformers(model("llama"), tokenizer(), max_completion=6, temperature=0.8, lora=lora, **more)
    for number, parameter in enumerate(policy.parameters().values()):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    policy.sets.keep("masking")
    for number, parameter in enumerate(policy.parameters().values()):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 + number))
    return policy


def logits_of(policy, ids, name="current"):
    """``[V]`` after some ids, at the policy's temperature, without what is never said."""
    with policy.using(name):
        logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -1].double() / policy.temperature
    return logits.index_fill(0, policy.drawing.never, -torch.inf)


def words_of(policy, ids, masking):
    """Which words the masking set leaves in, counted down from the likeliest."""
    probs = logits_of(policy, ids, masking.name).softmax(-1).tolist()
    left_in, mass = set(policy.drawing.stops.tolist()), 0.0
    for place, word in enumerate(sorted(range(len(probs)), key=lambda word: -probs[word])):
        if mass >= masking.top_p and place >= masking.least:
            break
        left_in.add(word)
        mass += probs[word]
    return left_in


def masked(policy, ids, masking, name="current"):
    """``[V]`` log-probabilities that are left over."""
    words = sorted(words_of(policy, ids, masking))
    logits = logits_of(policy, ids, name)
    left = torch.full_like(logits, -torch.inf)
    left[words] = logits[words]
    return left.log_softmax(-1)


@torch.no_grad()
def alone(policy, prompt, uniform, masking):
    """One completion, all logits again for every token, by the inverse of the cumulated probabilities."""
    ids, drawn = list(policy.chat.prompt(prompt).ids), []
    for number in uniform:
        bounds = masked(policy, ids + drawn, masking).exp().cumsum(-1)
        drawn.append(int((bounds <= number * bounds[-1]).sum()))
        if drawn[-1] in policy.drawing.stops.tolist():
            break
    return ids, drawn


@pytest.mark.parametrize(("lora", "masking"), [(None, HALF), ({"rank": 4}, HALF), (None, Masking("masking", 0.01, least=3))])
def test_rows_are_drawn_and_scored_on_the_words_that_are_left_in(lora, masking) -> None:
    policy = moved(lora)
    rollout = policy.sample(PROMPTS, 8, torch.Generator().manual_seed(0), masking=masking)
    uniform = torch.rand((16, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy.remember(rollout, ["ref"], 64)
    needs = frozenset({OLD, ENTROPY, refs("ref"), kls("ref")})
    steps = policy.steps(rollout, torch.arange(16), needs=needs)
    outside = 0
    for row in range(16):
        ids, drawn = alone(policy, PROMPTS[row // 8], uniform[row], masking)
        assert rollout.held.tokens[row, : len(drawn)].tolist() == drawn and int(rollout.held.lengths[row]) == len(drawn)
        for step, word in enumerate(drawn):
            before = ids + drawn[:step]
            assert word in words_of(policy, before, masking)
            with torch.no_grad():
                own, theirs = (masked(policy, before, masking, name) for name in ("current", "ref"))
                outside += int(logits_of(policy, before).argmax()) not in words_of(policy, before, masking)
            inside = own.isfinite()
            gap = torch.where(inside, own - theirs, 0.0)
            wanted = {"log_probs": own[word], "refs": theirs[word], "kls": (own.exp() * gap).sum()}
            wanted["entropy"] = -(own.exp() * torch.where(inside, own, 0.0)).sum()
            got = {"log_probs": steps.log_probs, "refs": steps.refs["ref"], "kls": steps.kls["ref"], "entropy": steps.terms["entropy"]}
            for name, table in got.items():
                torch.testing.assert_close(table[row, step].detach(), wanted[name], rtol=0, atol=2e-5)
    assert outside > 3  # or the mask takes nothing away here
    assert rollout.metrics["engine_difference_max"] < 2e-5
    torch.testing.assert_close(steps.old, rollout.log_probs)


def test_the_gradient_is_that_of_the_masked_distribution() -> None:
    policy = moved()
    rollout = policy.sample(["ab"], 2, torch.Generator().manual_seed(3), masking=HALF)
    parameter = next(iter(policy.parameters().values()))
    (got,) = torch.autograd.grad(policy.steps(rollout, torch.arange(2)).log_probs.sum(), parameter)
    ids, total = list(policy.chat.prompt("ab").ids), torch.zeros(())
    for row in range(2):
        drawn = rollout.held.tokens[row, : rollout.held.lengths[row]].tolist()
        total = total + sum(masked(policy, ids + drawn[:step], HALF)[word] for step, word in enumerate(drawn))
    (wanted,) = torch.autograd.grad(total, parameter)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_rows_keep_their_words_when_they_are_taken_and_put_together_and_the_set_moves() -> None:
    policy = moved(memory={"rows_at_once": 3})
    one, two = (policy.sample(PROMPTS, 4, torch.Generator().manual_seed(seed), masking=HALF) for seed in (0, 1))
    whole = type(one).join([one, two.take(torch.tensor([5, 1]))])
    policy.sets.keep("masking")  # the words of rows that are there stay those that they were drawn from
    steps = policy.steps(whole, torch.arange(10))
    torch.testing.assert_close(steps.log_probs[:8][whole.mask[:8]].detach(), one.log_probs[one.mask], rtol=0, atol=2e-5)
    for row, place in ((8, 5), (9, 1)):
        live = two.mask[place]
        torch.testing.assert_close(steps.log_probs[row][whole.mask[row]].detach(), two.log_probs[place][live], rtol=0, atol=2e-5)
    free = replace(one, held=replace(one.held, allowed=None))
    assert set(policy.digests(free)).isdisjoint(policy.digests(one))  # what a reference says of them is not the same


def test_others_who_draw_say_nothing_else_either() -> None:
    policy = moved()
    reference = Behavior("ref", {"ref": 1.0}, part=0.5)
    rollout = policy.sample(PROMPTS, 8, torch.Generator().manual_seed(0), behaviors=(reference,), masking=HALF)
    for row in range(16):
        ids, drawn = list(policy.chat.prompt(PROMPTS[row // 8]).ids), rollout.held.tokens[row, : rollout.held.lengths[row]].tolist()
        assert all(word in words_of(policy, ids + drawn[:step], HALF) for step, word in enumerate(drawn))


def _rewarded(outputs, prompts, **columns):
    return torch.tensor([text.count("e") - 0.1 * len(text) for text in outputs], dtype=torch.float64)


class Recorded:
    """What a policy samples in a run, and which words its masking set left in before each rollout."""

    def __init__(self, policy):
        self.policy, self.rollouts, self.words = policy, [], []
        self.sample, policy.sample = policy.sample, self.recorded

    def recorded(self, prompts, *args, **kwargs):
        rollout = self.sample(prompts, *args, **kwargs)
        self.rollouts.append(rollout)
        ids = list(self.policy.chat.prompt("ab").ids)
        masking = kwargs.get("masking")
        self.words.append(None if masking is None else logits_of(self.policy, ids, masking.name).detach())
        return rollout


def _run(tmp_path, name, **method):
    torch.manual_seed(0)
    policy = mm.policies.transformers(model("llama"), tokenizer(), max_completion=6, heads=["value"])
    recorded = Recorded(policy)
    run = {"folder": str(tmp_path), "name": name, "trackers": ()}
    mm.online(
        policy, PROMPTS, {"mine": _rewarded}, mm.methods.nlpo(**method), steps=5, batch={"prompts": 2, "group": 4},
        optimizer=mm.adamw(rate=0.02), evaluation={"every": 5, "samples": 1}, run=run,
    )  # fmt: skip
    return recorded


def test_nlpo_never_samples_a_masked_word_and_is_ppo_where_nothing_is_masked(tmp_path) -> None:
    free, held = _run(tmp_path, "free", top_p=1.0), _run(tmp_path, "held", top_p=0.3, every=2)
    assert free.rollouts[0].held.allowed is None and all(words is None for words in free.words)
    said = 0
    for rollout in held.rollouts:
        live = rollout.mask
        left_in = unpacked(rollout.held.allowed, 64)[live]
        assert bool(left_in.gather(-1, rollout.held.tokens[live].unsqueeze(-1)).all())
        assert int(left_in.sum(-1).max()) < 32
        said += int(live.sum())
    assert said > 50
    assert not torch.equal(free.rollouts[0].held.tokens, held.rollouts[0].held.tokens)
    same = [torch.equal(one, two) for one, two in zip(held.words, held.words[1:], strict=False)]
    assert same == [True, False, True, False]  # before steps 0, 2 and 4 the set becomes the policy


def test_who_cannot_mask_says_so(tmp_path) -> None:
    policy = moved()
    policy.drawer = replace(policy.drawer, fit=replace(policy.fit, shared=False))
    with pytest.raises(UserError, match="method: masks words, and LlamaForCausalLM has no cache to read them with"):
        policy.sample(PROMPTS, 1, torch.Generator().manual_seed(0), masking=HALF)
    policy.engine = object()
    with pytest.raises(UserError, match=r"policy\.engine: the method masks words, which a server cannot; takes no engine"):
        policy.sample(PROMPTS, 1, torch.Generator().manual_seed(0), masking=HALF)
    from mmalign.training.updates.units import refuse_mismatch

    policy.gives = frozenset({"old", "value", "refs"})
    with pytest.raises(UserError, match="method: needs masking; this policy gives old, refs, value"):
        refuse_mismatch(policy, mm.methods.nlpo())


def test_bits() -> None:
    words = torch.rand((3, 5, 67), generator=torch.Generator().manual_seed(0)) < 0.5
    assert packed(words).shape == (3, 5, 9) and torch.equal(unpacked(packed(words), 67), words)
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    assert likely(probs, 0.4).tolist() == [[True, False, False, False]] and likely(probs, 0.41).tolist() == [[True, True, False, False]]
