"""Reward models: what is read of a row, how it is trained, what it is used and handed over as."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mmalign as mm
from mmalign.policies.exports import scorers
from mmalign.policies.scorers.heads._head import Head
from mmalign.records import Pair, Ranking, RefusedRow, Thumb
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

PROMPTS, OUTPUTS = ["abc", "why", "one two", "abc"], ["the answer", "a nswer or not", "yes", "it is"]


def reader(kind: str = "qwen2", **settings: Any) -> Any:
    return transformers(tiny_text.model(kind), tiny_text.tokenizer(tiny_text.CHATML), max_completion=24, **settings)


def scorer(kind: str = "qwen2", *, seed: int = 0, **settings: Any) -> Any:
    lora = {"lora": settings.pop("lora")} if "lora" in settings else {}
    policy = mm.policies.scorer(reader(kind, **lora), **settings)
    with torch.no_grad():
        policy.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return policy


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_a_score_is_the_head_on_the_state_of_the_last_token(kind: str) -> None:
    policy = scorer(kind, scores=["good", "brief"])
    scores = policy.score(PROMPTS, OUTPUTS)
    model, chat = policy.of.model, policy.of.chat
    for row, (prompt, output) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        ids = [*chat.prompt(prompt).ids, *chat.row(prompt, output).completion]
        states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(scores[row].float(), policy.head(states), rtol=1e-4, atol=1e-5)


def test_gradients_arrive_at_the_backbone_or_at_the_head_alone() -> None:
    for trained, names in (("all", None), ("head", {"head.weight"})):
        policy = scorer(trained=trained)
        rollout = policy.encode(PROMPTS, OUTPUTS, torch.arange(4), torch.Generator())
        policy.steps(rollout, torch.arange(4)).log_probs.sum().backward()
        moved = {name for name, parameter in policy.parameters().items() if parameter.grad is not None and bool(parameter.grad.any())}
        assert moved == names if names else len(moved) > 5 and "head.weight" in moved
        assert trained == "all" or not any(parameter.requires_grad for parameter in policy.of.model.parameters())


def test_a_lora_under_a_head_that_is_trained_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.trained: head freezes all of policy\.of, which has a lora; takes one of the two"):
        scorer(lora={"rank": 2}, trained="head")


def test_a_linear_head_that_starts_apart_is_drawn_by_its_seed() -> None:
    one, same, other = (mm.heads.linear(spread=0.5, seed=seed).make(2000, ["a", "b"]).weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.std().item() == pytest.approx(0.5, rel=0.05)
    assert not torch.equal(one[0], one[1])


def test_output_embeddings_that_no_score_depends_on_are_not_trained(tmp_path: Path) -> None:
    model = tiny_text.model("llama")
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    policy = mm.policies.scorer(transformers(model, tiny_text.tokenizer(tiny_text.CHATML), max_completion=24))
    assert not any("lm_head" in name for name in policy.parameters()) and not model.lm_head.weight.requires_grad
    with torch.no_grad():
        policy.head.weight.normal_()
    policy.steps(policy.encode(PROMPTS, OUTPUTS, torch.arange(4), torch.Generator()), torch.arange(4)).log_probs.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters().values())
    policy.sets.keep("best")
    policy.sets.load(policy.sets.tables())
    tied = mm.policies.scorer(reader("gpt2"))
    assert tied.of.model.transformer.wte.weight.requires_grad


def by_annotator() -> Any:
    """A head whose score is the length of who judged."""

    class Named(torch.nn.Linear):
        def forward(self, features: torch.Tensor, columns: Any) -> torch.Tensor:
            bias = torch.tensor([len(name) for name in columns["annotator"]], dtype=features.dtype)
            return super().forward(features) + bias[:, None]

    return Head("by_annotator", lambda width, scores: Named(width, len(scores), bias=False), frozenset({"annotator"}))


def test_a_head_sees_the_columns_of_its_rows(tmp_path: Path) -> None:
    policy = scorer(head=by_annotator())
    scores = policy.score(PROMPTS, OUTPUTS, {"annotator": ["a", "bb", "ccc", ""]})
    plain = scores - torch.tensor([1.0, 2.0, 3.0, 0.0]).double()[:, None]
    torch.testing.assert_close(plain, policy.score(PROMPTS, OUTPUTS, {"annotator": [""] * 4}))
    with pytest.raises(UserError, match=r"policy\.head: reads annotator, which these records do not say"):
        policy.score(PROMPTS, OUTPUTS)
    seen, batches = mm.policies.scorer(reader(), head=by_annotator()), list[Any]()
    seen.head.register_forward_pre_hook(lambda module, given: batches.append(given[1]["annotator"]))
    told = [pair._replace(annotator=pair.id[:3]) for pair in pairs()]
    given = settings(tmp_path) | {"steps": 1}
    given["evaluation"]["records"] = told[1::2]
    mm.offline(seen, told[::2], mm.methods.bradley_terry(), **given)
    assert {name for batch in batches for name in batch} == {"abc", "why"}


def pairs() -> list[Pair]:
    """Whose shorter output is the better one."""
    words = ["no", "yes it is", "or not", "the answer", "one two one two"]
    return [Pair(p, a, b, float(len(a) < len(b)), id=f"{p} {a} {b}") for p in ("abc", "why") for a in words for b in words if a < b]


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    run = {"folder": str(folder), "name": "run", "trackers": (), "checkpoint_every": 4, **more}
    batch = {"records": 10, "micro_rows": 7}
    return {"steps": 8, "optimizer": mm.adamw(rate=3e-3), "batch": batch, "run": run, "evaluation": {"records": pairs()[1::2], "every": 4}}


def test_a_reward_model_is_trained_resumed_used_and_handed_over(tmp_path: Path) -> None:
    def begin(folder: Path, steps: int, resume: bool = False) -> Any:
        given = settings(folder) | {"steps": steps}
        return mm.offline(mm.policies.scorer(reader(lora={"rank": 2})), pairs()[::2], mm.methods.bradley_terry(), **given, resume=resume)

    whole = begin(tmp_path / "whole", 8)
    begin(tmp_path / "parts", 4)
    resumed = begin(tmp_path / "parts", 8, resume=True)
    for name, value in whole.policy.parameters().items():
        assert torch.equal(value, resumed.policy.parameters()[name]), name
    summary = whole.summary
    assert summary["held_out/accuracy_before"] == 0.5 and summary["held_out/loss_after"] < summary["held_out/loss_before"]
    assert summary["held_out/accuracy_after"] > 0.5 and 0 < summary["held_out/accuracy_se_after"] < 0.2
    page = whole.report.path.read_text()
    assert "Accuracy on held-out records 0.50" in page and "over-optimisation" not in page


def test_held_out_numbers_are_those_of_the_method(tmp_path: Path) -> None:
    held = pairs()[1::2]
    run = mm.offline(mm.policies.scorer(reader()), pairs()[::2], mm.methods.bradley_terry(), **settings(tmp_path))
    scores = run.policy.score([pair.prompt for pair in held for _ in "ab"], [text for pair in held for text in (pair.first, pair.second)])
    gap = (scores[::2, 0] - scores[1::2, 0]) * torch.tensor([1.0 if pair.strength else -1.0 for pair in held])
    assert run.summary["held_out/loss_after"] == pytest.approx(float(torch.nn.functional.softplus(-gap).mean()), rel=1e-5)
    assert run.summary["held_out/accuracy_after"] == pytest.approx(float((gap > 0).double().mean()))


def test_a_policy_for_text_is_measured_on_held_out_records_too(tmp_path: Path) -> None:
    given = settings(tmp_path)
    given["optimizer"] = mm.adamw(rate=1e-4)
    given["evaluation"] |= {"samples": 1, "prompts": ["abc"]}
    rewards = {"length": lambda outputs, prompts: [1.0] * len(outputs)}
    summary = mm.offline(reader(), pairs()[::2], mm.methods.dpo(beta=1.0), rewards=rewards, **given).summary
    assert abs(summary["held_out/margin_before"]) < 1e-5 and summary["held_out/loss_after"] < summary["held_out/loss_before"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evaluation": {}}, "evaluation.records: missing"),
        ({"evaluation": {"records": pairs()[::2]}}, "evaluation.records: are those that are trained on"),
        ({"evaluation": {"records": [Thumb("abc", "no", 1.0)]}}, "this method compares the rows of a pair"),
        ({"evaluation": {"records": pairs(), "judges": {"own": len}}}, "evaluation.judges: a reward model makes no outputs"),
        ({"references": {"ref": {"every": 1}}}, "references.ref: a reward model has no reference"),
    ],
)
def test_what_a_reward_model_cannot_be_given_is_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {**settings(tmp_path), **change}
    with pytest.raises(UserError, match=words):
        mm.offline(mm.policies.scorer(reader()), pairs()[::2], mm.methods.bradley_terry(), **given)
    assert not list(tmp_path.iterdir())


def test_nothing_is_sampled_and_names_are_checked() -> None:
    policy = scorer()
    with pytest.raises(UserError, match="scores outputs, and makes none"):
        policy.generate(["abc"], [0])
    with pytest.raises(UserError, match="this policy gives none of them"):
        mm.online(policy, prompts=["abc"], method=mm.methods.grpo(), rewards={"a": len})
    for scores in ("good", [], ["a", "a"]):
        with pytest.raises(UserError, match="scores: got"):
            mm.policies.scorer(reader(), scores=scores)
    with pytest.raises(RefusedRow):
        policy.score(["abc"], [""])


def test_lists_and_ratings_train_one_too(tmp_path: Path) -> None:
    lists = [Ranking(p, ("no", "yes it is", "one two one two"), (2.0, 1.0, 0.0), id=p) for p in ("abc", "why", "one two", "or not")]
    for name in ("list_mle", "score_regression"):
        given = settings(tmp_path, name=name) | {"batch": {"records": 2}}
        given["evaluation"] = {"records": lists[2:], "every": 4}
        summary = mm.offline(mm.policies.scorer(reader()), lists[:2], getattr(mm.methods, name)(), **given).summary
        assert summary["held_out/loss_after"] < summary["held_out/loss_before"]


def test_an_image_is_read_in_front_of_its_prompt() -> None:
    policy = mm.policies.scorer(mm.policies.transformers(mm.worlds.digit_scenes(), device="cpu", max_completion=1))
    with torch.no_grad():
        policy.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    prompts, images = ["a handwritten seven", "a handwritten two"], torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    scores = policy.score(prompts, images)
    chat, model = policy.of.chat, policy.of.model
    for row in (0, 1):
        parts = [{"type": "image", "image": images[row].expand(3, -1, -1)}, {"type": "text", "text": prompts[row]}]
        prompt = chat.prompt([{"role": "user", "content": parts}])
        ids = torch.tensor([[*prompt.ids, chat.stops[0]]])
        inputs = dict(chat.vision.inputs(prompt))
        types = {name: torch.nn.functional.pad(value, (0, 1)) for name, value in inputs.items() if name.endswith("type_ids")}
        states = model.model(input_ids=ids, **{**inputs, **types}).last_hidden_state[0, -1]
        torch.testing.assert_close(scores[row].float(), policy.head(states), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores, policy.score(prompts, images.flip(0)))
    with pytest.raises(UserError, match=r"policy\.of: reads words alone"):
        scorer().score(prompts, images)


def test_an_export_fills_rows_up_with_a_token_that_ends_nothing(tmp_path: Path) -> None:
    policy = scorer("llama")
    policy.of.chat.tokenizer.pad_token_id = policy.of.chat.stops[0]  # as many tokenizers have it
    scorers.save(policy, tmp_path / "out", prompt="abc")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] not in policy.of.chat.stops


CLEAN = """
import sys
sys.modules["mmalign"] = None
folder, ids = sys.argv[1], [int(word) for word in sys.argv[2].split()]
{code}
print(score(torch.tensor([ids])).tolist())
"""


@pytest.mark.parametrize("kind", ["mlp", "gated"])
def test_a_head_that_is_not_linear_is_computed_by_whom_has_only_its_tensors(tmp_path: Path, kind: str) -> None:
    of = reader(**({"lora": {"rank": 2}} if kind == "mlp" else {}))
    heads = {"mlp": mm.heads.mlp(width=3, layers=2), "gated": mm.heads.gated(attributes=str(tmp_path), width=3, temperature=2.0)}
    rows = torch.randn(3, of.model.config.hidden_size, generator=torch.Generator().manual_seed(9))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "kind", "1": "true", "2": "long"}}))
    save_file({"score.weight": rows}, tmp_path / "model.safetensors")
    policy = mm.policies.scorer(of, head=heads[kind], scores=["a", "b"] if kind == "mlp" else ["a"])
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters().values()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    (form,) = scorers.save(policy, tmp_path / "out", prompt="abc")
    chat, (prompt, output) = policy.of.chat, ("why", "one two")
    ids = [*chat.prompt(prompt).ids, *chat.row(prompt, output).completion]
    program = CLEAN.format(code="\n".join(form.code))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out"), " ".join(map(str, ids))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    scores = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(scores, policy.score([prompt], [output]).float(), rtol=1e-4, atol=1e-5)
