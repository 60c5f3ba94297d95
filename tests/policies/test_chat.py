"""Prompts and completions as ids: templates, masks, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mmalign.needs import CHANGED, OLD, PHRASE, SEGMENT, contrast
from mmalign.policies.language.prompts.chat import Chat
from mmalign.types import Need, UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

ASK = [{"role": "user", "content": "hi"}]
TOOLS = [
    {"role": "assistant", "content": "call a"},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "so 42"},
]
DROPS = tiny_text.CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + tiny_text.CHATML
REWRITES = tiny_text.CHATML.replace("m['content'] +", "(m['content'] if loop.last or m['role'] != 'assistant' else '...') +")


def chat(template=tiny_text.CHATML, **more):
    return Chat(tiny_text.tokenizer(template), **more)


def said(of, ids):
    return of.tokenizer.decode(ids, skip_special_tokens=False)


def trained(of, row):
    return said(of, [token for token, counts in zip(row.completion, row.trained, strict=True) if counts])


def test_a_string_is_the_users_turn_and_a_completion_ends_with_its_turn():
    of = chat()
    row = of.row("hi", "yes")
    assert said(of, row.prompt.ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert said(of, row.completion) == "yes<|im_end|>" and all(row.trained)
    assert of.prompt("hi") == row.prompt == of.prompt(ASK)
    assert of.text(row.completion) == "yes"


@pytest.mark.parametrize("template", [tiny_text.CHATML, tiny_text.MARKED])
def test_of_several_turns_only_the_assistants_count(template):
    of = chat(template)
    row = of.row(ASK, TOOLS)
    assert said(of, row.prompt.ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    whole = "call a<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\nso 42<|im_end|>"
    assert said(of, row.completion) == whole
    assert trained(of, row) == "call a<|im_end|>so 42<|im_end|>"


def test_a_system_turn_is_put_where_there_is_none():
    of = chat(system="be kind")
    assert said(of, of.prompt("hi").ids).startswith("<|im_start|>system\nbe kind<|im_end|>")
    own = [{"role": "system", "content": "mine"}, *ASK]
    assert said(of, of.prompt(own).ids).startswith("<|im_start|>system\nmine<|im_end|>")
    assert said(of, of.prompt(own, system="other").ids).startswith("<|im_start|>system\nother<|im_end|>")


def test_without_a_template_a_completion_ends_with_the_end_of_text():
    of = Chat(tiny_text.tokenizer())
    row = of.row("ab", "cd")
    assert said(of, row.prompt.ids) == "ab" and said(of, row.completion) == "cd<eos>"
    for carried in ("cd<eos>", "cd<eos><eos>", "cd<eos>\n"):
        assert of.row("ab", carried) == row  # which is ended once


@pytest.mark.parametrize(
    ("template", "prompt", "output", "message"),
    [
        (DROPS, [{"role": "system", "content": "be kind"}, *ASK], "yes", "drops the system turn"),
        (REFUSES, [{"role": "system", "content": "be kind"}, *ASK], "yes", "no system turn here"),
        (REWRITES, ASK, TOOLS, "writes earlier turns otherwise"),
        (tiny_text.CHATML, ASK, "", "empty"),
        (tiny_text.CHATML, ASK, [{"role": "tool", "content": "42"}], "empty"),
        (tiny_text.CHATML, TOOLS[:1], "yes", "ends with the assistant"),
        (None, ASK, "yes", "no chat template"),
        (None, "ab", TOOLS, "no chat template"),
        (None, "", "yes", "prompt: got an empty one"),
        (tiny_text.CHATML, ASK, torch.zeros(3, 8, 8), r"completion: got a tensor \[3, 8, 8\], takes a text, or the turns that follow"),
        (tiny_text.CHATML, ASK, [torch.zeros(3)], "completion: got a list, takes a text"),
        (None, "ab", 3, "completion: got a int, takes a text"),
    ],
)
def test_what_a_template_loses_is_refused(template, prompt, output, message):
    of = chat(template) if template else Chat(tiny_text.tokenizer(bos_token=None))
    with pytest.raises(UserError, match=message) as caught:
        of.row(prompt, output)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_needs_an_end_and_no_pad():
    with pytest.raises(UserError, match="eos_token"):
        Chat(tiny_text.tokenizer(eos_token=None))
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(pad_token=None), max_completion=5)
    assert policy.sample(["ab"], 2, torch.Generator()).mask.any()


def policy_of(**more):
    model = tiny_text.model()
    return transformers(model, tiny_text.tokenizer(tiny_text.CHATML), **{"max_completion": 40, **more})


def encoded(policy, prompts, outputs):
    return policy.encode(prompts, outputs, torch.arange(len(prompts)), torch.Generator())


def test_masked_turns_are_seen_and_not_scored():
    policy = policy_of()
    rollout = encoded(policy, [ASK, ASK], [TOOLS, [*TOOLS[:1], {"role": "tool", "content": "43"}, TOOLS[2]]])
    steps = policy.steps(rollout, torch.arange(2), needs=frozenset({OLD, SEGMENT}))
    assert steps.old is None and bool(rollout.log_probs.isnan().all())
    assert not bool(steps.log_probs[~steps.mask].any())
    first, last = steps.mask[0].nonzero().flatten()[[0, -1]].tolist()
    assert torch.allclose(steps.log_probs[0, first], steps.log_probs[1, first], atol=1e-5)
    assert float((steps.log_probs[0, last] - steps.log_probs[1, last]).abs()) > 1e-4  # it has read another number
    ids = torch.cat([rollout.held.prompts[0], rollout.held.tokens[0]])
    full = policy.model(input_ids=ids.unsqueeze(0)).logits[0].index_fill(-1, torch.tensor([0, 1]), -1e9).log_softmax(-1)
    place = len(rollout.held.prompts[0]) + last
    assert torch.allclose(steps.log_probs[0, last], full[place - 1, ids[place]].double(), atol=1e-5)


def test_too_long_is_refused_or_cut_and_counted():
    long = "a" * 200
    with pytest.raises(UserError, match=r"row 1: prompt: has .* a context of 128 leaves room for 88"):
        encoded(policy_of(), ["hi", long], ["yes", "no"])
    with pytest.raises(UserError, match=r"prompt 0: has .* max_prompt is 3"):
        policy_of(max_prompt=3).sample(["hello"], 2, torch.Generator())
    with pytest.raises(UserError, match=r"row 0: completion: has .* max_completion is 40"):
        encoded(policy_of(), ["hi"], [long])
    for side in ("left", "right"):
        with pytest.warns(UserWarning, match="are too long and cut"):
            policy = policy_of(truncate=side)
            rollout = encoded(policy, ["hi", long], [long, "no"])
        assert policy.cut == {"prompts": 1, "completions": 1}
        whole = list(policy.chat.prompt(long).ids)
        assert rollout.held.prompts[1].tolist() == (whole[-88:] if side == "left" else whole[:88])
        assert rollout.held.lengths.tolist() == [40, 3]


def test_contrasts_score_the_same_completions_behind_other_prompts():
    policy = policy_of(contrasts={"good": "be kind"})
    rollout = encoded(policy, ["hi", "yo"], ["yes", "no"])
    policy.remember(rollout, ["ref"], 2)
    steps = policy.steps(rollout, torch.arange(2), needs=frozenset({Need("refs"), contrast("good"), contrast("mismatched")}))
    by_hand = encoded(policy_of(system="be kind"), ["hi", "yo"], ["yes", "no"])
    assert torch.allclose(steps.contrasts["good"].log_probs, policy.steps(by_hand, torch.arange(2)).log_probs, atol=1e-5)
    swapped = encoded(policy, ["yo", "hi"], ["yes", "no"])
    assert torch.allclose(steps.contrasts["mismatched"].log_probs, policy.steps(swapped, torch.arange(2)).log_probs, atol=1e-5)
    assert torch.allclose(steps.contrasts["good"].refs["ref"], steps.contrasts["good"].log_probs, atol=1e-5)
    with pytest.raises(UserError, match="needs 'bad'"):
        policy.steps(rollout, torch.arange(2), needs=frozenset({contrast("bad")}))


def test_pairs_know_where_they_differ():
    policy = policy_of()
    rollout = policy.encode(["hi", "hi"], ["a red cat", "a dog"], torch.zeros(2, dtype=torch.int64), torch.Generator())
    facts = policy.steps(rollout, torch.arange(2), needs=frozenset({CHANGED, PHRASE})).facts
    assert facts["changed"].tolist() == [[0, 0, 1, 1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]]
    assert torch.equal(facts["changed"], facts["phrase"])
