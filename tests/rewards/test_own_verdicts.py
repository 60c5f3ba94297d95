"""The policy as the judge of its own answers: against the model's own logits, and what it cannot be asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.recipes.online import online
from mmalign.training.rollouts.feedback import refuse_asked, scores_on
from mmalign.training.settings import Devices
from mmalign.types import UserError

ONE, TWO = " {answer} is", " {first} or {second} is"
PROMPTS = ["returns the value", "returns the value", "returns the value", "the name of", "the name of"]


def policy() -> Any:
    return mm.policies.transformers(*mm.worlds.text(), max_completion=8)


def log_odds(model: Any, tokenizer: Any, question: str, say: tuple[str, str] = ("true", "false")) -> float:
    """By transformers alone: log p of the first saying and its end, less that of the second; pad, bos and unk are never said."""
    total = []
    for word in say:
        ids = tokenizer(f"{question} {word} <eos>", return_tensors="pt", add_special_tokens=False)["input_ids"]
        asked = tokenizer(question, return_tensors="pt")["input_ids"]
        ids = torch.cat([asked, ids[:, -2:]], 1)
        logits = model(ids).logits[0].double()
        logits[:, [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]] = -torch.inf
        told = logits.log_softmax(-1)
        total.append(sum(float(told[place - 1, ids[0, place]]) for place in range(asked.shape[1], ids.shape[1])))
    return total[0] - total[1]


@torch.no_grad()
def test_a_verdict_is_what_the_model_itself_would_say() -> None:
    model, tokenizer = mm.worlds.text()
    own, sigmoid = policy(), lambda x: 1 / (1 + torch.tensor(-x, dtype=torch.float64).exp())
    rollout = own.encode(
        PROMPTS, ["of x .", "the end .", "a name .", "the file .", "it ."], torch.tensor([0, 0, 0, 1, 1]), torch.Generator()
    )
    alone = scores_on({}, rollout, oracle=mm.rewards.own_verdicts(words=ONE, say=("true", "false"), at_once=2), policy=own).wins
    both = scores_on({}, rollout, oracle=mm.rewards.own_verdicts(words=TWO, say=("true", "false"), at_once=3), policy=own).wins
    assert alone is not None and both is not None
    for i in range(5):
        for j in range(5):
            if i == j or rollout.group[i] != rollout.group[j]:
                assert alone[i, j].isnan() and both[i, j].isnan()
                continue
            one, other = (log_odds(model, tokenizer, f"{PROMPTS[i]} {rollout.outputs[row]} is") for row in (i, j))
            assert abs(alone[i, j] - sigmoid(one - other)) < 1e-5  # float32, some 10 layers of sums
            first, second = (
                log_odds(model, tokenizer, f"{PROMPTS[i]} {rollout.outputs[a]} or {rollout.outputs[b]} is") for a, b in ((i, j), (j, i))
            )
            assert abs(both[i, j] - (sigmoid(first) + 1 - sigmoid(second)) / 2) < 1e-5


def test_another_set_judges_and_what_does_not_fit_is_missing() -> None:
    own, group = policy(), torch.tensor([0, 0, 0])
    oracle = mm.rewards.own_verdicts(words=ONE, say=("true", "false"), by="ref")
    asked: Any = {"prompts": PROMPTS[:3], "outputs": ["of x .", "the end .", "of the " * 20 + "."], "group": group, "policy": own}
    with pytest.warns(UserWarning, match="a question does not fit the policy"):
        before = oracle(**asked)
    with torch.no_grad():
        for p in own.parameters().values():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(oracle(**asked).nan_to_num(9.0), before.nan_to_num(9.0))
    moved = mm.rewards.own_verdicts(words=ONE, say=("true", "false"))(**asked)
    assert abs(moved[0, 1] - before[0, 1]) > 1e-3
    assert before[2].isnan().all() and before[:, 2].isnan().all() and not before[0, 1].isnan()
    with pytest.raises(UserError, match="none of 2 questions fits the policy: has 44 tokens"):
        oracle(outputs=["of the " * 20, "of the " * 20], prompts=PROMPTS[:2], group=group[:2], policy=own)


def test_mistakes_are_one_line(tmp_path: Any) -> None:
    for words, says in (("who?", "own_verdicts.words: got 'who\\?'"), ("{first} {answer}", "takes words with {first} and {second}")):
        with pytest.raises(UserError, match=says):
            mm.rewards.own_verdicts(words=words)
    with pytest.raises(UserError, match=r"say: got .* takes two different texts"):
        mm.rewards.own_verdicts(say=("A", "A"))
    oracle = mm.rewards.own_verdicts(words=ONE)
    with pytest.raises(UserError, match="asks the policy that is trained, and nothing is trained here"):
        oracle(["a"], ["b"], torch.tensor([0]))
    run: Any = {"prompts": PROMPTS[:1], "rewards": {"plain": mm.worlds.text_plain()}, "method": mm.methods.osp(), "oracle": oracle}
    run["run"] = mm.RunSettings(name="x", folder=str(tmp_path), trackers=[])
    for batch, says in (({"overlap": 2}, "batch.overlap: .* takes 1"), ({"staleness": 1}, "batch.staleness: .*")):
        with pytest.raises(UserError, match=says):
            online(policy(), batch=mm.Batch(prompts=2, group=2, **batch), **run)
    with pytest.raises(UserError, match=r"devices.place: the oracle asks the policy in each process by itself"):
        online(policy(), devices=Devices(place="fsdp2"), **run)
    with pytest.raises(UserError, match="oracle: asks the policy for verdicts, and this one answers in no words"):
        refuse_asked(oracle, SimpleNamespace(learns_from="images"), mm.Batch(), Devices())
