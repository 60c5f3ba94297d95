"""A checkpoint in float16, trained whole: what cannot learn is refused, what overflows is said, counted, stopped, and on the pages."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from diffusers import DiffusionPipeline

import mmalign as mm
from mmalign.policies.twins import pipelines, texts
from mmalign.records import Pair
from mmalign.report import build
from mmalign.types import UserError

RECORDS = [Pair(f"what is {i}", f"it is {i}", f"a dog {i}", 1.0, str(i)) for i in range(8)]


@pytest.fixture
def checkpoint(tmp_path):
    """A language model saved in float16, loaded by its path."""
    model, words = texts.twin("LlamaForCausalLM")
    model.half().save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def run_of(tmp_path, checkpoint, optimizer, *, steps=10, dead_steps=3, policy=None):
    settings = {"batch": {"records": 2}, "evaluation": {"every": 100, "samples": 1, "call": {"max_completion": 2}}}
    policy = mm.policies.transformers(checkpoint, max_completion=16, device="cpu", **(policy or {}))
    run = {"name": "run", "folder": str(tmp_path), "trackers": (), "dead_steps": dead_steps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mm.offline(policy, RECORDS, mm.methods.dpo(beta=0.1), steps=steps, optimizer=optimizer, run=run, **settings)


@pytest.mark.parametrize("optimizer", [mm.adamw(rate=1e-3), mm.adafactor(rate=1e-3)], ids=["adamw", "adafactor"])
def test_squares_of_gradients_in_float16_are_refused_before_anything_starts(tmp_path, checkpoint, optimizer):
    takes = r"takes policy\.dtype: float32 or bfloat16, policy\.lora, sgd, or adamw with eps: 0\.0001 or more"
    with pytest.raises(UserError, match=rf"optimizer: 21 of 21 trained parameters are float16, .*; {takes}"):
        run_of(tmp_path, checkpoint, optimizer)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["float32", "bfloat16", "lora", "sgd", "eps"])
def test_what_the_line_says_learns(tmp_path, checkpoint, what):
    optimizer = {"sgd": mm.sgd(rate=1e-2), "eps": mm.adamw(rate=1e-3, eps=1e-4)}.get(what, mm.adamw(rate=1e-3))
    policy = {"lora": {"lora": {"rank": 2, "targets": "all-linear"}}, "float32": {"dtype": what}, "bfloat16": {"dtype": what}}.get(what, {})
    run = run_of(tmp_path, checkpoint, optimizer, steps=30, policy=policy)
    losses = [row["loss"] for row in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines()) if row["phase"] == "train"]
    assert run.summary["status"] == "finished" and "dead_steps" not in run.summary
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5]), losses


def test_weights_that_overflow_are_said_counted_and_stopped(tmp_path, checkpoint, capsys):
    run = run_of(tmp_path, checkpoint, mm.sgd(rate=3000.0, max_norm=float("inf")))
    why = "the gradient is not finite, so the update was skipped (float16 weights? take bfloat16 or float32, or a lower rate)"
    assert run.summary["status"] == "stopped learning" and run.summary["dead_because"] == why
    steps, dead = run.summary["steps"], run.summary["dead_steps"]
    assert 3 <= dead < steps < 10 and run.policy.model.dtype == torch.float16
    assert f"taught nothing: {why}" in capsys.readouterr().out
    page = build(run.path).read_text(encoding="utf-8")
    assert f"It stopped learning: {dead} of {steps} steps taught nothing (the gradient is not" in page
    with pytest.raises(UserError, match="export: this model's answers are not numbers: its weights have overflowed"):
        run.export(out=tmp_path / "export")


def test_what_still_answers_is_exported_with_its_dead_steps_at_the_top(tmp_path, checkpoint):
    run = run_of(tmp_path, checkpoint, mm.sgd(rate=30.0, max_norm=float("inf")))
    steps, dead = run.summary["steps"], run.summary["dead_steps"]
    assert run.summary["status"] == "stopped learning" and 3 <= dead < steps < 10
    headline = (run.export(out=tmp_path / "export") / "README.md").read_text(encoding="utf-8").partition("## ")[0]
    assert f"**{dead} of its {steps} steps taught it nothing, the last 3 among them (the gradient is 0).**" in headline


def test_a_run_that_learned_nothing_says_so_on_its_card_and_page(tmp_path):
    constant = lambda outputs, prompts: [1.0 for _ in outputs]  # noqa: E731
    model, words = texts.twin("LlamaForCausalLM")
    model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    policy = mm.policies.transformers(str(tmp_path / "base"), max_completion=3, device="cpu")
    run = mm.online(
        policy, ["a", "b"], {"constant": constant}, mm.methods.grpo(), steps=2, batch={"prompts": 1, "group": 2},
        evaluation={"every": 1, "samples": 1}, run={"name": "nothing", "folder": str(tmp_path), "trackers": ()},
    )  # fmt: skip
    why = "no row has a signal: all rewards that are compared are alike"
    assert run.summary["status"] == "learned nothing"
    page = build(run.path).read_text(encoding="utf-8")
    assert f"<h1>It learned nothing: 2 of 2 steps taught nothing ({why}); constant 1.00 \N{RIGHTWARDS ARROW} 1.00</h1>" in page
    card = (run.export() / "README.md").read_text(encoding="utf-8")
    assert f"**This run learned nothing: none of its 2 steps taught it anything ({why}).**" in card


def test_a_pipeline_in_float16_trained_whole_is_refused_too(tmp_path):
    pipelines.twin("StableDiffusion3Pipeline").to(torch.float16).save_pretrained(tmp_path / "base")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "base", dtype=torch.float16)
    policy = mm.policies.diffusers(pipe, schedule={"steps": 2}, device="cpu")
    with pytest.raises(UserError, match="trained parameters are float16"):
        mm.adamw().make(policy.parameters().values())
