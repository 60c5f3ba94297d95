"""Methods for vision-language models on a batch of pairs about pictures: what they are told reaches them, and their gradient arrives."""

from __future__ import annotations

import re
from itertools import islice

import pytest
import torch

import mmalign as mm
from mmalign.needs import CHANGED, PHRASE, contrast, refs, reverse_kls
from mmalign.policies.twins import visions
from mmalign.recipes._records import rows_of
from mmalign.rooms import resource

NEEDS = {
    "dpo": {refs("ref")}, "dense_dpo": {CHANGED}, "rrpo": {PHRASE, reverse_kls("ref")}, "mdpo": {contrast("ablated")},
    "opa_dpo": {contrast("ablated")}, "mapl": {contrast("ablated")}, "mm_dpo": set(), "tdpo2": {reverse_kls("ref")}, "sft": set(),
}  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return mm.policies.transformers(*visions.twin("LlavaForConditionalGeneration"), max_completion=64, device="cpu")


@pytest.fixture(scope="module")
def records():
    texts = mm.data.picture_texts(str(resource("assets/pictures/pairs.jsonl")))
    return [record._replace(scores=(2.0, 1.0)) for record in islice(texts.stream(seed=0), 2)]


def encoded(policy, records, method):
    prompts, outputs, feedback = rows_of(records, method)
    rollout = policy.encode(prompts, outputs, feedback.group, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"], 4)
    return rollout, feedback


@pytest.mark.parametrize("name", NEEDS)
def test_a_batch_of_pictures_trains(policy, records, name):
    method = getattr(mm.methods, name)()
    assert NEEDS[name] <= method.needs
    rollout, feedback = encoded(policy, records, method)
    assert all(prompt[0]["content"][0]["type"] == "image" for prompt in rollout.prompts)
    steps = policy.steps(rollout, torch.arange(4), needs=method.needs)
    loss = (method.weigh(steps.mask) * method.loss(steps, method.signal(feedback)).values).sum()
    gradients = torch.autograd.grad(loss, list(policy.parameters().values()), allow_unused=True)
    norms = {name: float(g.norm()) for name, g in zip(policy.parameters(), gradients, strict=True) if g is not None}
    assert loss.isfinite() and all(norm < float("inf") for norm in norms.values())
    if name in ("mdpo", "opa_dpo"):
        assert float((steps.contrasts["ablated"].log_probs - steps.log_probs).abs().max()) > 1e-6  # without the picture it is another row
    for part in ("vision", "projector", "lm_head"):  # the picture is trained with the rest, unless it is frozen
        assert max(norm for name, norm in norms.items() if part in name) > 0, part


def test_words_that_differ_are_told_apart_behind_pictures(policy, records):
    method = mm.methods.rrpo()
    rollout, _ = encoded(policy, records, method)
    facts = policy.steps(rollout, torch.arange(4), needs=frozenset({CHANGED, PHRASE})).facts
    for row, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        text, spans = rollout.outputs[row], rollout.spans()[row]
        words, theirs = re.findall(r"\S+", text), set(re.findall(r"\S+", rollout.outputs[other]))
        marked = {text[start:end] for (start, end), on in zip(spans, facts["changed"][row].tolist(), strict=False) if on}
        letters = set("".join(word for word in words if word not in theirs))
        assert marked == letters and torch.equal(facts["changed"][row] > 0, facts["phrase"][row] > 0)
