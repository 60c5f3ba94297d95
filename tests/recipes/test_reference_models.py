"""Runs whose references are other models: the loss of the equation, from Python and from YAML, resumed to the last bit; and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmalign as mm
from mmalign.config import build, check, load
from mmalign.policies.settings import Schedule
from mmalign.records import Pair
from mmalign.types import UserError
from mmalign.worlds.text import base

PAIRS = [Pair("the name of", "the file .", "a list .", 1.0, f"pair {number}") for number in range(3)] + [
    Pair("if the value", "is not a string .", "is the the .", 1.0, f"pair {number}") for number in range(3, 6)
]
LARGER = {"width": 32, "layers": 3, "seed": 1}


def shaken(model: Any, seed: int) -> Any:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.2)
    return model.eval()


def small() -> tuple[Any, Any]:
    model, words = base.untrained(width=16, layers=1)
    return shaken(model, 0), words


def larger(seed: int = 1) -> tuple[Any, Any]:
    model, words = base.untrained(**LARGER)
    return shaken(model, seed), words


def around(model: tuple[Any, Any], **more: Any) -> Any:
    return mm.policies.transformers(model, max_completion=8, device="cpu", **more)


def brief(outputs: list[str], prompts: list[str], **_: Any) -> torch.Tensor:
    return torch.tensor([-float(len(text.split())) for text in outputs])


def offline(tmp_path: Path, teacher: Any, *, name: str = "run", method: Any = None, **more: Any) -> Any:
    given: dict[str, Any] = {
        "steps": 4,
        "batch": {"records": 6, "micro_rows": 4},
        "optimizer": mm.adamw(rate=1e-2),
        "references": {"ref": mm.Reference(policy=teacher)},
        "evaluation": {"every": 4, "samples": 1},
        "run": {"name": name, "folder": str(tmp_path), "checkpoint_every": 2, "trackers": ()},
    }
    policy = more.pop("policy", None) or around(small(), **more.pop("settings", {}))
    return mm.offline(policy, PAIRS, method or mm.methods.dpo(beta=0.3), **{**given, **more})


def online(tmp_path: Path, teacher: Any, *, name: str = "run", method: Any = None, settings: Any = None, **more: Any) -> Any:
    given: dict[str, Any] = {
        "steps": 4,
        "batch": {"prompts": 2, "group": 3, "micro_rows": 4},
        "optimizer": mm.adamw(rate=1e-2),
        "references": {"ref": mm.Reference(policy=teacher)},
        "evaluation": {"every": 4, "samples": 1},
        "run": {"name": name, "folder": str(tmp_path), "checkpoint_every": 2, "trackers": ()},
    }
    prompts = ["the name of", "if the value", "this is the"]
    policy = around(small(), **(settings or {}))
    return mm.online(policy, prompts, {"brief": brief}, method or mm.methods.grpo(beta=0.1), **{**given, **more})


def rows(run: Any, phase: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines if line["phase"] == phase]


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.policy.parameters().items()}


def log_prob(model: Any, words: Any, prompt: str, output: str) -> float:
    """Of a completion with its end, by a model's own forward."""
    ids, end = words(prompt, add_special_tokens=False)["input_ids"], words(output, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([[*ids, *end, words.eos_token_id]])
    with torch.no_grad():
        logits = model(input_ids=whole, use_cache=False).logits[0].double()
    never = [words.pad_token_id, words.bos_token_id, words.unk_token_id]
    full = logits.index_fill(-1, torch.tensor(never), -1e9).log_softmax(-1)
    return float(sum(full[place - 1, whole[0, place]] for place in range(len(ids), whole.shape[1])))


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}])
def test_dpo_s_first_loss_is_the_equation_s_with_the_other_model_as_its_reference(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = offline(tmp_path, around(larger()), settings=settings)
    (one, words), (two, _) = small(), larger()
    margins = []
    for pair in PAIRS:
        own = [log_prob(one, words, pair.prompt, text) for text in (pair.first, pair.second)]
        ref = [log_prob(two, words, pair.prompt, text) for text in (pair.first, pair.second)]
        margins.append((own[0] - ref[0]) - (own[1] - ref[1]))
    wanted = -torch.nn.functional.logsigmoid(0.3 * torch.tensor(margins).double()).mean()
    first = rows(run)[0]
    assert first["loss"] == pytest.approx(float(wanted), abs=1e-4) and abs(first["loss"] - 0.6931) > 0.01
    assert first["margin"] == pytest.approx(sum(margins) / 6, abs=1e-3)
    assert rows(run)[-1]["loss"] < first["loss"] and run.summary["preflight_difference"] < 1e-4


@pytest.mark.parametrize("recipe", [offline, online])
@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, recipe: Any, settings: dict[str, Any]) -> None:
    whole = recipe(tmp_path, around(larger()), name="whole", settings=settings)
    recipe(tmp_path, around(larger()), name="halves", settings=settings, steps=2)
    halves = recipe(tmp_path, around(larger()), name="halves", settings=settings, steps=4, resume=True)
    assert rows(whole)[2:] == rows(halves)[2:]
    assert all(torch.equal(value, weights(halves)[name]) for name, value in weights(whole).items())
    kept = whole.path / "checkpoints" / "step_000004"
    assert json.loads((kept / "state.json").read_text())["state"]["learner"]["digests"].keys() == {"ref"}
    size = sum(file.stat().st_size for file in kept.glob("*.safetensors"))
    own = sum(p.numel() for p in around(small(), **settings).parameters().values())
    assert size < 4 * (3 * own) + 60_000  # what is trained and two moments; no copy of the start, and nothing of the other model
    with pytest.raises(UserError, match=r"references\.ref\.policy: its weights are others than those that this run began with \(digest"):
        recipe(tmp_path, around(larger(seed=5)), name="halves", settings=settings, steps=6, resume=True)


def test_the_kl_that_is_logged_is_the_one_to_the_other_model(tmp_path: Path) -> None:
    near, far = (online(tmp_path, around(model()), name=name) for name, model in (("near", small), ("far", larger)))
    assert rows(near)[0]["kl"] == pytest.approx(0.0, abs=1e-4) and rows(far)[0]["kl"] > 0.1


def test_a_reference_that_is_a_set_from_elsewhere_need_not_be_the_start(tmp_path: Path) -> None:
    """Its margins are not 0 before training, and the first loss is the equation's with it."""
    model, words = small()
    shaken(model, 9).save_pretrained(tmp_path / "elsewhere")
    run = offline(tmp_path, around(larger()), references={"ref": mm.Reference(from_=str(tmp_path / "elsewhere"))})
    start, _ = small()
    gaps = [[log_prob(one, words, pair.prompt, text) for text in (pair.first, pair.second) for one in (start, model)] for pair in PAIRS]
    margins = torch.tensor([(better - theirs) - (worse - their_worse) for better, theirs, worse, their_worse in gaps]).double()
    wanted = -torch.nn.functional.logsigmoid(0.3 * margins).mean()
    assert rows(run)[0]["loss"] == pytest.approx(float(wanted), abs=1e-4) and float(margins.abs().min()) > 0.01


def test_a_diffusion_policy_is_held_to_another_pipeline(tmp_path: Path) -> None:
    def pipeline(seed: int, **sizes: Any) -> Any:
        from mmalign.policies.twins import pipelines
        from mmalign.worlds.digits.base import untrained
        from mmalign.worlds.digits.model import DigitsTransformer

        pipe = untrained(seed=seed)
        if sizes:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                pipe.register_modules(transformer=DigitsTransformer(**sizes))
        pipelines.shake_parameters(pipe, 0.05)
        return mm.policies.diffusers(pipe, schedule=Schedule(steps=3), device="cpu", **({"lora": {"rank": 2}} if not sizes else {}))

    def start(**more: Any) -> Any:
        return mm.online(
            pipeline(0), ["a 1", "a 2"], {"bright": lambda outputs, prompts, **_: outputs.flatten(1).mean(1)},
            mm.methods.flow_grpo(ratio="per_step", clip=0.2, beta=0.1), batch={"prompts": 2, "group": 2},
            references={"ref": mm.Reference(policy=pipeline(1, width=48, depth=2, heads=4))}, evaluation={"every": 9, "samples": 1},
            run={"folder": str(tmp_path), "name": "run", "checkpoint_every": 1, "trackers": ()}, **more,
        )  # fmt: skip

    run = start(steps=1)
    assert run.summary["preflight_difference"] == 0.0 and rows(run)[0]["kl"] > 0.01
    run = start(steps=2, resume=True)
    assert run.summary["steps"] == 2 and {name.rpartition(".")[0].rpartition(".")[2] for name in run.policy.parameters()} == {"default"}


def written(tmp_path: Path) -> dict[str, Any]:
    """A config with models in folders."""
    for name, (model, words) in (("small", small()), ("larger", larger())):
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    transformers = {"use": "transformers", "max_completion": 8, "device": "cpu"}
    return {
        "use": "online",
        "policy": {**transformers, "model": str(tmp_path / "small")},
        "method": {"use": "grpo", "beta": 0.1},
        "references": {"ref": {"policy": {**transformers, "model": str(tmp_path / "larger")}}},
        "prompts": {"use": "text_prompts", "count": 4},
        "rewards": {"plain": {"use": "text_plain"}},
        "steps": 2,
        "batch": {"prompts": 2, "group": 2},
        "evaluation": {"samples": 1},
        "run": {"name": "yaml", "folder": str(tmp_path / "runs"), "trackers": [], "checkpoint_every": 1},
    }


def test_a_config_says_it_and_a_run_keeps_it(tmp_path: Path) -> None:
    config = written(tmp_path)
    assert check(config) == []
    run = build(config)
    kept = yaml.safe_load((run.path / "config.yaml").read_text())
    assert kept["references"]["ref"]["policy"]["model"] == str(tmp_path / "larger") and rows(run)[0]["kl"] > 0.1
    changed = {**config, "steps": 3, "references": {"ref": {"policy": {**config["references"]["ref"]["policy"], "dtype": "bfloat16"}}}}
    with pytest.raises(UserError, match=r"references\.ref\.policy\.dtype was '\(absent\)', is 'bfloat16'"):
        build(changed, resume=True)
    smaller = {**config["references"]["ref"]["policy"], "memory": {"logits_at_once": 4000}}  # changes no number but by rounding
    assert build({**config, "steps": 3, "references": {"ref": {"policy": smaller}}}, resume=True).summary["steps"] == 3
    model, _ = larger(seed=7)
    model.save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError, match=r"references\.ref\.policy: its weights are others"):
        build({**config, "steps": 4}, resume=True)


def test_the_small_config_is_held_to_the_larger_model(tmp_path: Path) -> None:
    config = load("text_small/larger_reference", ["steps=1", "evaluation.samples=1", f"run.folder={tmp_path}", "batch.prompts=4"])
    assert check(config) == []
    config["evaluation"]["prompts"]["count"] = 2
    run = build(config)
    mean = sum(row["kl"] for row in rows(run))
    assert 1.0 < mean < 100.0 and run.summary["preflight_difference"] < 1e-4
    kept = yaml.safe_load((run.path / "config.yaml").read_text())
    assert kept["references"] == {"ref": {"policy": {"use": "transformers", "model": {"use": "text"}, "max_completion": 20}}}


def test_python_and_yaml_say_the_same(tmp_path: Path) -> None:
    config = written(tmp_path)
    make = lambda name: mm.policies.transformers(str(tmp_path / name), max_completion=8, device="cpu")  # noqa: E731
    run = online(tmp_path, make("larger"))
    kept = yaml.safe_load((run.path / "config.yaml").read_text())
    assert kept["references"] == config["references"]


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ({"policy": {"use": "transformers", "modl": "x"}}, "references.ref.policy.modl: unknown key of transformers; nearest: model"),
        ({"policy": {"use": "transformers"}}, "references.ref.policy.model: missing, transformers needs it"),
        ({"policy": "gpt2"}, "references.ref.policy.use: got 'gpt2', there is none in policies"),
        ({"policy": {"use": "transformers", "model": "x"}, "every": 3}, "references.ref.every: given beside policy, and another model is"),
        ({"policy": {"use": "transformers", "model": "x"}, "shares": {"ref": 1.0}}, "references.ref.shares: given beside policy"),
        ({"policy": {"use": "transformers", "model": "x"}, "from": "runs/x"}, "references.ref.from: given beside policy"),
        ({"policy": {"use": "transformers", "model": "x", "temperature": 0.5}}, "references.ref.policy.temperature: got 0.5, and policy"),
        ({"polcy": {"use": "transformers", "model": "x"}}, "references.ref.polcy: unknown key of ref; nearest: policy"),
        ({"policy": {"use": "diffusers", "pipeline": "x"}}, "references.ref.policy.use: got diffusers, and policy is transformers; takes"),
        ({"policy": {"use": "transformers", "model": "x", "lora": {"rnk": 2}}}, "references.ref.policy.lora.rnk: unknown key of lora"),
    ],
)
def test_check_finds_mistakes_in_it(reference: dict[str, Any], line: str) -> None:
    config = {
        "use": "online", "policy": {"use": "transformers", "model": "x"}, "method": {"use": "grpo", "beta": 0.1},
        "prompts": ["a"], "rewards": {"plain": {"use": "text_plain"}},
        "references": {"ref": reference},
    }  # fmt: skip
    assert any(mistake.startswith(line) for mistake in check(config)), check(config)


def test_check_knows_the_calls_of_another_pipeline() -> None:
    policy = {"use": "diffusers", "pipeline": {"use": "digits"}}
    wrong = {**policy, "call": {"hight": 8}}
    config = {
        "use": "online", "policy": policy, "method": {"use": "flow_grpo", "beta": 0.1}, "prompts": ["a"],
        "rewards": {"proxy": {"use": "digits_proxy"}}, "references": {"ref": {"policy": wrong}},
    }  # fmt: skip
    assert [line.partition(";")[0] for line in check(config)] == ["references.ref.policy.call.hight: no argument of this policy's calls"]
    inside = {"use": "forward", "of": wrong, "draws": 2}
    config = {
        **config,
        "policy": {"use": "forward", "of": policy},
        "method": {"use": "flow_dpo"},
        "references": {"ref": {"policy": inside}},
    }
    assert any(line.startswith("references.ref.policy.of.call.hight") for line in check(config))
    assert any(line.startswith("references.ref.policy.draws: got 2, and policy.draws is 1; takes the same") for line in check(config))


@pytest.mark.parametrize(
    ("references", "method", "line"),
    [
        ({"teacher": None}, mm.methods.grpo(beta=0.1), r"teacher\.policy: the method asks nothing of 'teacher'; takes a name of ref"),
        ({"ref": None}, mm.methods.grpo(beta=0.0), r"ref\.policy: the method asks nothing of 'ref'; takes a name of a method with"),
        ({"ema": None}, mm.methods.grpo(beta=0.1), r"references\.ema: not a reference; takes another name"),
        ({"ref": None, "old": {"every": 2, "shares": {"ref": 1.0}}}, mm.methods.grpo(beta=0.1), r"old\.shares: ref is another model"),
        ({"ref": None}, mm.methods.xpo(), r"references\.ref\.policy: the method's ref draws rows from ref, and another model only scores"),
        ({"previous": None}, mm.methods.accelerated_po(), r"previous\.policy: the method renews '(start|ended|current|previous)'"),
        ({"ref": 3}, mm.methods.grpo(beta=0.1), r"online\.references\.ref: got 3, takes a mapping of from, every, shares, policy"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sampled(tmp_path: Path, references: Any, method: Any, line: str) -> None:
    given = {name: mm.Reference(policy=around(larger())) if of is None else of for name, of in references.items()}
    with pytest.raises(UserError, match=line):
        online(tmp_path, around(larger()), method=method, references=given)
    assert not (tmp_path / "run").exists()


def test_a_reference_that_reads_otherwise_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"references\.ref\.policy\.temperature: got 0\.5, and policy\.temperature is 1\.0"):
        online(tmp_path, around(larger(), temperature=0.5))
    assert not (tmp_path / "run").exists()
