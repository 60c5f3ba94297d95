"""Prompts that only the policy refuses: put aside with their number, counted, and the run goes on; a resume does not meet them again."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from PIL import Image

import mmalign as mm
from mmalign.policies.diffusers import diffusers
from mmalign.policies.transformers import TransformersPolicy
from mmalign.policies.twins import pipelines, visions
from mmalign.training.rollouts.prompts import Prompts
from mmalign.types import Prompt, UserError
from tests.helpers import small_run, tiny_text
from tests.helpers.flat import transformers

GOOD = [f"what is {i}?" for i in range(6)]
ODD = {
    "a long prompt": "q " * 100,
    "a picture": [{"role": "user", "content": [{"type": "image", "path": "no.png"}]}],
    "an assistant's turn": [{"role": "assistant", "content": "a"}],
    "no turns": [],
}


def policy(**more):
    return transformers(
        tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), **{"max_completion": 4, "device": "cpu", "lora": {"rank": 2}, **more}
    )


def letters(outputs, prompts):
    """A number that tells prompts and outputs apart."""
    return torch.tensor([float(sum(map(ord, f"{output}{prompt}")) % 7) for output, prompt in zip(outputs, prompts, strict=True)])


def run_of(tmp_path, prompts, *, chosen=None, name="run", rewards=letters, **more):
    settings = {
        "steps": 4,
        "batch": {"prompts": 2, "group": 4},
        "evaluation": {"every": 100, "samples": 1},
        "run": {"name": name, "folder": str(tmp_path), "checkpoint_every": 1, "trackers": ()},
        **more,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mm.online(chosen or policy(), prompts, {"letters": rewards}, mm.methods.grpo(), **settings)


def named(run):
    return [json.loads(line) for line in (run.path / "broken.jsonl").read_text().splitlines()]


def rows(run, *keys):
    lines = [row for row in small_run.rows(run.path) if row["phase"] == "train"]
    return [{key: row[key] for key in keys or row} for row in lines]


@pytest.mark.parametrize("what", ODD)
def test_one_prompt_that_the_policy_refuses_is_put_aside(tmp_path, what, capsys):
    run = run_of(tmp_path, [*GOOD[:3], ODD[what], *GOOD[3:]])
    assert [entry["id"] for entry in named(run)] == ["prompt 4"] and named(run)[0]["why"]
    assert len(rows(run)) == 4 and rows(run, "broken")[-1] == {"broken": 1.0}
    assert capsys.readouterr().out.count("prompts: prompt 4 left out: ") == 1


def test_its_id_is_said_where_it_has_one(tmp_path):
    run = run_of(tmp_path, [*GOOD[:3], Prompt("q " * 100, {"id": "math-17"})], steps=1)
    assert named(run) == [{"id": "prompt 4 (id math-17)", "why": named(run)[0]["why"]}] and "tokens" in named(run)[0]["why"]


def test_prompts_beyond_those_of_the_evaluation_are_met_in_their_step(tmp_path):
    prompts = [*(f"why {i}?" for i in range(16)), "q " * 100, "r " * 100]
    run = run_of(tmp_path, prompts, steps=9)
    assert {entry["id"] for entry in named(run)} == {"prompt 17", "prompt 18"}
    assert [row.get("broken", 0.0) for row in rows(run)] == sorted(row.get("broken", 0.0) for row in rows(run))


def test_a_run_with_a_refused_prompt_takes_the_next_ones(tmp_path):
    seen = []

    def noted(outputs, prompts):
        seen.append(list(dict.fromkeys(prompts)))
        return letters(outputs, prompts)

    run_of(tmp_path, [*GOOD, "q " * 100, "r " * 100], rewards=noted, steps=3, evaluation={"every": 100, "prompts": ["a"], "samples": 1})
    trained = [prompt for part in seen[1:-1] for prompt in part]  # without the evaluations before and after
    assert sorted(trained) == sorted(GOOD)  # a whole round, each once


def test_a_resumed_run_goes_on_as_the_whole_one_did(tmp_path):
    prompts = [*(f"why {i}?" for i in range(16)), *(f"{i} " * 100 for i in range(10))]
    whole = run_of(tmp_path, prompts, name="whole", steps=6)
    cut = named(run_of(tmp_path, prompts, name="cut", steps=3))
    resumed = run_of(tmp_path, prompts, name="cut", steps=6, resume=True)
    assert 0 < len(cut) < len(named(whole)) == 10
    assert rows(resumed) == rows(whole) and named(resumed) == named(whole)


def test_a_resume_does_not_meet_it_again(tmp_path, monkeypatch):
    prompts = [*(f"why {i}?" for i in range(16)), "q " * 100]
    run_of(tmp_path, prompts, steps=9)
    met = []
    sample = TransformersPolicy.sample
    monkeypatch.setattr(
        TransformersPolicy, "sample", lambda self, some, *args, **more: (met.extend(some), sample(self, some, *args, **more))[1]
    )
    run_of(tmp_path, prompts, steps=18, resume=True)
    assert len(met) == 18 and prompts[16] not in met


def test_what_was_put_aside_after_the_checkpoint_changes_nothing_of_what_follows():
    """Known from broken.jsonl, or found out: the same prompts in the same steps."""

    class Refusing:
        def refusals(self, prompts):
            return {place: "odd" for place, prompt in enumerate(prompts) if prompt.startswith("odd")}

    prompts = [f"odd {i}" if i % 3 == 0 else f"fine {i}" for i in range(12)]

    def sample(chosen):
        if any(prompt.startswith("odd") for prompt in chosen):
            raise UserError("prompt 0: odd")
        return chosen

    def steps(known):
        coming = Prompts(prompts, Refusing(), seed=3)
        coming.resumed(known, position=0)
        return [coming.sampled(sample, 3, attempt=attempt)[0] for _ in range(9) for attempt in (0, 1)], coming.aside

    logged, aside = steps({})
    assert len(aside) == 4 and steps(aside)[0] == logged == steps({"prompt 1": "odd"})[0]
    first_attempts = [prompt for chosen in logged[::2] for prompt in chosen]
    fine = sorted(prompt for prompt in prompts if prompt.startswith("fine"))
    assert [sorted(first_attempts[start : start + 8]) for start in (0, 8, 16)] == [fine] * 3  # rounds of all that are left
    with pytest.raises(UserError, match="prompts: the policy refuses all 12; the last one, prompt 12: odd"):
        steps({f"prompt {number}": "odd" for number in range(1, 13)})


def test_prompts_of_which_none_is_left_are_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"prompts: the policy refuses all 3; the last one, prompt 3: has \d+ tokens, .*takes a shorter one"
    ):
        run_of(tmp_path, ["q " * 100] * 3)
    assert not (tmp_path / "run").exists()


def test_a_prompt_of_the_evaluation_that_was_named_is_refused_by_its_number(tmp_path):
    with pytest.raises(UserError, match=r"evaluation.prompts: the policy refuses prompt 2: has \d+ tokens"):
        run_of(tmp_path, GOOD, evaluation={"prompts": ["a", "q " * 100], "samples": 3})


def test_an_error_that_is_no_prompts_fault_is_raised_as_it_is(tmp_path):
    class Failing(small_run.GaussianPolicy):
        def sample(self, *args, **more):
            raise RuntimeError("a bug")

    failing = small_run.policy()
    failing.__class__ = Failing
    with pytest.raises(RuntimeError, match="a bug"):
        small_run.online(tmp_path, policy=failing)


def test_what_is_cut_of_prompts_is_counted_as_often_as_they_are_asked(tmp_path):
    cutting = policy(truncate="left")
    run_of(tmp_path, ["q " * 100, *GOOD[:1]], chosen=cutting, steps=1)
    assert cutting.cut == {"prompts": 3}  # before, in the step, after; not where it was only tried


def test_a_picture_that_does_not_decode_is_put_aside(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])
    ask = lambda name: [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / name)}, {"type": "text", "text": "what"}]}]  # noqa: E731
    seeing = transformers(*visions.twin("LlavaForConditionalGeneration"), max_completion=4, device="cpu", lora={"rank": 2})
    run = run_of(tmp_path, [ask("good.png"), ask("bad.png"), ask("gone.png")], chosen=seeing, steps=2)
    assert [entry["id"] for entry in named(run)] == ["prompt 2", "prompt 3"]
    assert "bad.png" in named(run)[0]["why"] and "gone.png" in named(run)[1]["why"]


def test_a_prompt_that_the_pipelines_call_refuses_is_put_aside(tmp_path):
    """A picture beside the prompt that cannot be read, and words that the pipeline does not take."""
    pipe = pipelines.twin("StableDiffusion3Pipeline")
    ran = []
    pipe.transformer.register_forward_hook(lambda *_: ran.append(1))

    def conditions(prompts):
        if "gone" in prompts:
            raise FileNotFoundError("gone.png")
        return {}

    chosen = diffusers(pipe, schedule=mm.Schedule(steps=2), conditions=conditions, lora=mm.Lora(rank=2), device="cpu")
    assert chosen.refusals(["a fox", "a dog"]) == {} == chosen.refusals([])
    assert chosen.refusals(["a fox", "gone", 3, "a dog"]).keys() == {1, 2}
    assert ran == [1]  # once, of two rows: whether it takes so many
    bright = lambda outputs, prompts: outputs.flatten(1).mean(1)  # noqa: E731
    run = mm.online(
        chosen, ["a fox", "gone", "a dog"], {"bright": bright}, mm.methods.flow_grpo(), steps=2, batch={"prompts": 1, "group": 2},
        evaluation={"every": 100, "samples": 1}, run={"name": "run", "folder": str(tmp_path), "trackers": ()},
    )  # fmt: skip
    assert named(run) == [{"id": "prompt 2", "why": "FileNotFoundError: gone.png"}]


def test_a_prompt_that_is_no_class_is_put_aside_and_not_taken_as_class_0(tmp_path):
    """Of a pipeline that takes numbers of classes; there is none of -1, 1000, or a digit that is no decimal."""
    chosen = diffusers(pipelines.twin("DiTPipeline"), schedule=mm.Schedule(steps=2), lora=mm.Lora(rank=2), device="cpu")
    words = ["207", "a fox", " 999 ", "-1", "1000", "\u00b2", "\u0663", "", "1e2", "9" * 5000]
    refused = chosen.refusals(words)
    assert list(refused) == [1, 3, 4, 5, 6, 7, 8, 9] and all(len(line) < 250 for line in refused.values())
    assert refused[1] == "prompts: got 'a fox' for a pipeline that takes class_labels, takes the number of a class, 0 to 999"
    with pytest.raises(UserError, match="got 'a fox' for a pipeline that takes class_labels"):
        chosen.generate(["a fox"], [0])
    bright = lambda outputs, prompts: outputs.flatten(1).mean(1)  # noqa: E731
    run = mm.online(
        chosen, ["3", "a fox"], {"bright": bright}, mm.methods.flow_grpo(), steps=2, batch={"prompts": 1, "group": 2},
        evaluation={"every": 100, "samples": 1}, run={"name": "run", "folder": str(tmp_path), "trackers": ()},
    )  # fmt: skip
    assert [entry["id"] for entry in named(run)] == ["prompt 2"]


def test_a_pipeline_that_takes_one_row_says_so_before_anything_is_sampled(tmp_path):
    pipe = pipelines.twin("KandinskyPipeline")
    how = {"call": pipelines.call_arguments(pipe), "device": "cpu", "schedule": mm.Schedule(steps=2)}  # one image of a prior for a call
    line = r"policy.memory.rows_at_once: got 64, and KandinskyPipeline goes through a step with one row and not with two \(.*\); takes 1"
    for prompts in (["a red fox", "two blue birds"], ["a red fox"]):  # a group has several rows, too
        with pytest.raises(UserError, match=line):
            run_of(tmp_path, prompts, chosen=diffusers(pipe, **how), batch={"prompts": 1, "group": 2})
    assert list(tmp_path.iterdir()) == []
    policy = diffusers(pipe, **how, memory=mm.Memory(rows_at_once=1))
    assert policy.refusals(["a red fox", "two blue birds"]) == {} and not policy.caller.takes_several


def test_a_pipeline_that_takes_one_generator_is_told_of_lists():
    base = mm.worlds.digits()

    class Own(type(base)):  # type: ignore[misc]
        @torch.no_grad()
        def __call__(self, prompt, num_inference_steps=4, generator=None, latents=None, output_type="pt", return_dict=True):
            torch.randn(1, generator=generator)
            return super().__call__(prompt, num_inference_steps=num_inference_steps, latents=latents, output_type=output_type)

    policy = diffusers(Own(**base.components), device="cpu", schedule=mm.Schedule(steps=2))
    with pytest.raises(UserError, match="takes 1, or a pipeline that takes a list of generators, one for each row"):
        policy.refusals(["a 3", "a 5"])


def test_whether_a_call_takes_two_rows_is_asked_once():
    calls = []
    policy = mm.policies.diffusers(mm.worlds.digits(), device="cpu", schedule={"steps": 2})
    policy.denoiser.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        assert policy.refusals(["a 3", "a 5", "a 7"]) == {}
    assert len(calls) == 1 and policy.caller.takes_several


def test_no_memory_is_no_prompts_fault():
    pipe = pipelines.twin("StableDiffusion3Pipeline")

    def conditions(prompts):
        raise torch.OutOfMemoryError("no memory")

    chosen = diffusers(pipe, schedule=mm.Schedule(steps=2), conditions=conditions, lora=mm.Lora(rank=2), device="cpu")
    with pytest.raises(torch.OutOfMemoryError):
        chosen.refusals(["a fox"])
