"""A policy's own samples beside its reference: the KL and the ranks from whole distributions by hand, and what runs show of them."""

from __future__ import annotations

import json
import math

import pytest
import torch

import mmalign as mm
from mmalign.policies.language.codes.image_tokens import image_tokens
from mmalign.policies.language.codes.thinking_images import thinking_images
from mmalign.policies.twins import visions
from mmalign.records import Pair
from mmalign.training.evaluations import own_samples as module
from mmalign.training.evaluations.own_samples import own_kl, own_samples
from mmalign.types import Rollout, UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

PROMPTS = ["what is red?", "q", "q", "say more"]


def moved(policy):
    """The policy with its trained parameters elsewhere than its reference."""
    policy.sets.keep("ref")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in policy.parameters().values():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return policy


@pytest.fixture
def policy():
    model = transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=16, device="cpu", lora={"rank": 2})
    return moved(model)


def distributions(policy, rollout, row):
    """``[T, V]`` log-probabilities of one row's tokens under the current parameters and the reference, over all that is ever said."""
    held = rollout.held
    ids, tokens = list(held.encoded[held.which[row]].ids), held.tokens[row, : held.lengths[row]].tolist()
    found = []
    for name in ("current", "ref"):
        with torch.no_grad(), policy.using(name):
            logits = policy.model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
        expected = [token for token in range(logits.shape[-1]) if token not in policy.scorer.never.tolist()]  # no padding, no beginning
        found.append(logits[:, expected].double().log_softmax(-1))
    return found


def test_every_number_is_that_of_the_whole_distributions(policy, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 3)
    seen, rollout = set(), policy.traced(PROMPTS * 4, list(range(16)), max_completion=8)
    got = own_samples(policy, rollout, "ref")
    assert rollout.held.cut.any() and not rollout.held.cut.all()  # a row that came to no end has a KL too
    for row in range(len(rollout)):
        here, there = distributions(policy, rollout, row)
        assert float(got["kl"][row]) == pytest.approx(float((here.exp() * (here - there)).sum()), rel=1e-4)
        top = here.sort(-1, descending=True).values[:, :10]
        assert float(got["tokens/topk_mass"][row]) == pytest.approx(float(top.exp().sum(-1).mean()), rel=1e-4)
        assert float(got["tokens/topk_entropy"][row]) == pytest.approx(-float((top.exp() * top).sum(-1).mean()), rel=1e-4)
        ranks = [1 + sum(value > float(line[best]) for value in line.tolist()) for line, best in zip(there, here.argmax(-1), strict=True)]
        seen |= set(ranks)
        shares = [sum(low <= rank <= high for rank in ranks) / len(ranks) for low, high in ((1, 1), (2, 3), (4, 10**9))]
        assert [float(got[f"tokens/{name}"][row]) for name in ("unshifted", "marginal", "shifted")] == pytest.approx(shares)
    assert {1, 2, 3, 4} <= seen  # every boundary between shares
    assert float(got["kl"].min()) > 1e-3 and float(got["tokens/shifted"].sum()) > 0


def test_what_a_user_gets_is_what_is_scored(policy):
    rollout = policy.traced(PROMPTS, [1, 2, 3, 4])
    assert rollout.outputs == policy.generate(PROMPTS, [1, 2, 3, 4]) and rollout.log_probs.isnan().all()
    with policy.using("ref"):
        assert float(own_samples(policy, rollout, "ref")["kl"].abs().max()) < 1e-9  # the same parameters, the same prefixes


def test_a_row_without_a_step_is_missing(policy):
    rollout = policy.traced(PROMPTS, [1, 2, 3, 4])
    rollout.mask[1] = False
    got = own_samples(policy, rollout, "ref")
    assert all(values[1].isnan() and not values[[0, 2, 3]].isnan().any() for values in got.values())


@pytest.mark.parametrize("thoughts", [0, 5])
def test_images_as_tokens_have_a_kl_of_the_codes_that_were_drawn(thoughts):
    model, processor = visions.twin("JanusForConditionalGeneration")
    images = image_tokens(mm.policies.transformers(model, processor, max_completion=8), guidance=2.0)
    policy = moved(thinking_images(images, thoughts=thoughts) if thoughts else images)
    rollout = policy.traced(["a cat", "a dog"], [1, 2])
    assert torch.equal(rollout.outputs, policy.generate(["a cat", "a dog"], [1, 2]))
    got = own_samples(policy, rollout, "ref")
    again = Rollout.join([rollout.take(torch.tensor([1])), rollout.take(torch.tensor([0]))])
    assert torch.allclose(own_samples(policy, again, "ref")["kl"], got["kl"][[1, 0]], rtol=1e-4)
    draws = policy.sample(["a cat"], 64, torch.Generator().manual_seed(0))
    policy.remember(draws, ["ref"], 64)
    ratios = torch.where(draws.mask, draws.log_probs - draws.held.refs["ref"], 0.0).sum(1)
    exact = own_samples(policy, draws, "ref")["kl"]
    assert float(ratios.mean() - exact.mean()) < 4 * float((ratios - exact).std()) / 8  # the same expectation, with less noise
    assert float(exact.std()) < 0.5 * float(ratios.std()) and float(exact.mean()) > 0.01


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_an_offline_run_of_words_shows_reward_against_kl_with_and_without_a_reference(name, tmp_path):
    records = [Pair(f"what is {i}?", f"it is {i}.", f"dog {i}", 1.0, f"record-{i}") for i in range(8)]
    trained = transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=16, device="cpu", lora={"rank": 2})

    def length(outputs, prompts):
        return [float(len(output)) for output in outputs]

    run = mm.offline(
        trained, records, getattr(mm.methods, name)(), steps=4, batch={"records": 4, "micro_rows": 8}, optimizer=mm.adamw(rate=0.1),
        evaluation={"every": 2, "samples": 2, "judges": {"length": length}, "call": {"max_completion": 8}},
        run={"name": "run", "folder": str(tmp_path), "trackers": ()},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if row["phase"] == "eval"]
    nats = [row["kl"] for row in evals]
    assert nats[0] == 0.0 and all(value > 1e-4 for value in nats[1:]) and run.summary["kl"] == nats[-1]
    assert not {key for key in run.summary if key.startswith(("kl_", "tokens/"))} and "kl_missing" not in evals[-1]
    assert evals[0]["tokens/unshifted"] == 1.0 and 0 < evals[-1]["tokens/topk_mass"] <= 1
    page = run.report.path.read_text()
    assert "<h3>Reward against KL</h3>" in page and "No KL was logged" not in page
    assert "H_k, entropy of the 10 likeliest" in page and "Tokens that the base would not have said" in page


def test_an_online_run_of_words_measures_its_evaluations_too(tmp_path):
    trained = transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=8, device="cpu", lora={"rank": 2})
    reward = lambda outputs, prompts: torch.tensor([float(len(output)) for output in outputs], dtype=torch.float64)  # noqa: E731
    run = mm.online(
        trained, PROMPTS, {"length": reward}, mm.methods.rloo(beta=0.0), steps=2, batch={"prompts": 2, "group": 4},
        optimizer=mm.adamw(rate=0.1), evaluation={"every": 1, "samples": 2, "overlap": 2},
        run={"name": "run", "folder": str(tmp_path), "trackers": ()},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if row["phase"] == "eval"]
    assert evals[0]["kl"] == 0.0 and evals[-1]["kl"] > 1e-4 and math.isfinite(evals[-1]["kl_se"])


def test_the_kl_to_a_golden_model_stands_beside_that_to_the_teacher(policy, tmp_path):
    rollout = policy.traced(PROMPTS * 2, list(range(8)), max_completion=8)
    torch.testing.assert_close(own_kl(policy, rollout, "ref"), own_samples(policy, rollout, "ref")["kl"], rtol=0, atol=1e-9)
    credits = []
    own_samples(policy, rollout, "ref", credits)
    for row, parts in enumerate(credits):
        here, there = distributions(policy, rollout, row)
        token = rollout.held.tokens[row, : len(here)]
        allowed = [
            number
            for number in range(int(policy.model.get_input_embeddings().weight.shape[0]))
            if number not in policy.scorer.never.tolist()
        ]
        places = torch.tensor([allowed.index(number) for number in token.tolist()])
        gained = (here - there).gather(1, places[:, None])[:, 0].tolist()
        shown = [value for value, (start, end) in zip(gained, rollout.spans()[row], strict=False) if end > start]
        assert [value for _, _, value in parts] == pytest.approx(shown, abs=2e-4)
    make = lambda: transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=8, device="cpu")  # noqa: E731
    other = make()
    with torch.no_grad():
        for value in other.parameters().values():
            value.add_(0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    reward = lambda outputs, prompts: torch.tensor([float(len(output)) for output in outputs], dtype=torch.float64)  # noqa: E731
    settings = {
        "steps": 2, "batch": {"prompts": 2, "group": 4}, "optimizer": mm.adamw(rate=0.05),
        "references": {"teacher": {"policy": make()}, "golden": {"policy": other}},
    }  # fmt: skip
    evaluation = {"every": 1, "samples": 4, "references": ["teacher", "golden"]}
    trained = make()
    run = mm.online(trained, PROMPTS, {"length": reward}, mm.methods.opd(), evaluation=evaluation,
                    run={"name": "run", "folder": str(tmp_path), "trackers": ()}, **settings)  # fmt: skip
    first, *_, last = [row for row in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines()) if row["phase"] == "eval"]
    assert abs(first["kl/teacher"]) < 1e-6 < 1e-3 < first["kl/golden"] and last["kl/golden"] > 1e-3 and math.isfinite(first["kl/golden_se"])
    line = json.loads((run.path / "answers" / "step_000002.jsonl").read_text().splitlines()[0])
    assert line["credits"] and "".join(line["answer"][start:end] for start, end, _ in line["credits"]) == line["answer"]
    assert 'class="gained"' in run.report.path.read_text() or 'class="lost"' in run.report.path.read_text()
    assert run.summary["kl/golden_after"] == last["kl/golden"] and "kl/golden" in run.report.path.read_text()
    for wrong, line in ((["gold"], r"evaluation\.references: got 'gold', takes names of references: teacher, golden"),):
        with pytest.raises(UserError, match=line):
            mm.online(make(), PROMPTS, {"length": reward}, mm.methods.opd(), evaluation={"references": wrong},
                      run={"name": "wrong", "folder": str(tmp_path), "trackers": ()}, **settings)  # fmt: skip
