"""Kinds 12 to 16: things that did not do what they say."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from readings import png
from user import OFFLINE, ONLINE, PAIRS, PIPELINE, User, fault

import mmalign as mm

STEPS = {"steps": 4, "run.checkpoint_every": 2, "optimizer": {"rate": 1e-3, "decay": "linear"}}


def from_python(user: User) -> Any:
    """A run of the small language model that Python started."""
    policy = mm.policies.transformers(mm.worlds.text(model="small"), max_completion=8)
    return mm.online(
        policy, ["the name of"], {"plain": mm.rewards.length(most=3, soft=3)}, mm.methods.grpo(beta=0.0), steps=1,
        batch=mm.Batch(prompts=1, group=4), run=mm.RunSettings(name="r", folder="runs", trackers=()),
    )  # fmt: skip


# ---- 12


@fault(12, "CLI sample on a language model", "seed 0: ")
def sampled(user: User) -> str:
    user.train(ONLINE, {"steps": 1})
    return user.mmalign("sample", "runs/r", "--prompt", "the name of", "--count", "1")


@fault(12, "mmalign.sample on a language model", "sampled_")
def sampled_by_python(user: User) -> str:
    user.train(ONLINE, {"steps": 1})
    return user.python('mm.commands.sample("runs/r", ...)', lambda: mm.commands.sample("runs/r", prompts=["the name of"], count=1))


@fault(12, "inspect on a language model", "is scored within")
def inspect_words(user: User) -> str:
    return user.mmalign("inspect", user.model())


@fault(12, "inspect on a vision-language model", "gradient\\s.* LoRA layers")
def inspect_sight(user: User) -> str:
    return user.mmalign("inspect", "Qwen2VLForConditionalGeneration")


@fault(12, "policy.pipeline on a saved DigitsPipeline", "finished after 2 steps")
def saved(user: User) -> str:
    mm.worlds.digits().save_pretrained("digits")
    return user.train(PIPELINE, {"policy.pipeline": "digits"})


@fault(12, "policy.pipeline on a run", "is a run; takes the pipeline that it trained")
def on_a_run(user: User) -> str:
    user.train(PIPELINE, {"steps": 1})
    return user.train(PIPELINE, {"policy.pipeline": "runs/r", "run.name": "again"})


@fault(12, "policy.pipeline on an export", "finished after 1 steps")
def on_an_export(user: User) -> str:
    user.train(PIPELINE, {"steps": 1})
    user.mmalign("export", "runs/r")
    return user.train(PIPELINE, {"steps": 1, "policy.pipeline": "runs/r/export", "run.name": "again"})


@fault(12, "export and sample of a run that Python started", "forms: full(.|\n)*seed 0: ")
def python_run(user: User) -> str:
    from_python(user)
    return user.mmalign("export", "runs/r") + user.mmalign("sample", "runs/r", "--prompt", "the name of", "--count", "1")


@fault(12, "run.export() and run.sample()", "export.*sampled_")
def own_methods(user: User) -> str:
    run = from_python(user)
    return user.python("run.export(), run.sample([...])", lambda: (run.export().name, run.sample(["the name of"], count=1).name))


@fault(12, "a run's paths, used from another folder", "seed 0: ")
def elsewhere(user: User) -> str:
    user.train(ONLINE, {"steps": 1, "policy.model": user.model()})
    (user.folder / "inner").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mmalign", "sample", "../runs/r", "--prompt", "the name of", "--count", "1"],
        cwd=user.folder / "inner", capture_output=True, text=True, check=False,
    )  # fmt: skip
    user.commands.append("cd inner; mmalign sample ../runs/r --prompt 'the name of' --count 1")
    return done.stdout + done.stderr


def checked(kind: int, base: dict[str, Any], change: dict[str, Any], shows: str) -> None:
    @fault(kind, f"{next(iter(change))}: {next(iter(change.values()))!r}", shows + "(.|\n)*exit 2")
    def act(user: User) -> str:
        user.write("pairs.jsonl", PAIRS)
        printed = user.mmalign("check", user.config(base, change))
        user.commands[-1] += f"  # {change}"
        return printed


checked(12, PIPELINE, {"evaluation.call": {"num_inference_step": 2}}, "evaluation.call.num_inference_step")
checked(12, PIPELINE, {"evaluation.call": {"num_inference_steps": 0}}, "num_inference_steps: got 0")
checked(12, ONLINE, {"optimizer": {"rate": 1e-3, "ema": 2}}, "ema: got 2")
checked(12, ONLINE, {"optimizer": {"rate": -1}}, "rate: got -1")
checked(12, ONLINE, {"batch": {"prompts": 2, "group": 0}}, "group: got 0")
checked(12, ONLINE, {"policy.dtype": "bf16"}, "dtype: got 'bf16'")
checked(12, ONLINE, {"policy.device": "cudaa"}, "device: got 'cudaa'")
checked(12, ONLINE, {"evaluation.stop": {"judge": "rad"}}, "evaluation.stop.judge: got 'rad'")


# ---- 13


@fault(13, "image pairs with dpo on a diffusers policy", "takes policy: {use: forward, of: {use: diffusers")
def forward(user: User) -> str:
    for name in ("a.png", "b.png"):
        (user.folder / name).write_bytes(png((8, 8)))
    user.write("pictures.jsonl", [{"prompt": "a handwritten seven", "chosen": "a.png", "rejected": "b.png"}] * 3)
    return user.train(OFFLINE, {"policy": PIPELINE["policy"], "records": {"use": "pairs", "path": "pictures.jsonl"}, "evaluation": None})


def page(what: str, shows: str) -> None:
    @fault(13, f"the page of an offline run: {what}", shows)
    def act(user: User) -> str:
        user.train(OFFLINE, {"steps": 3})
        return (user.folder / "runs/r/report.html").read_text()


page("loss", "[Ll]oss")
page("margin", "[Mm]argin")
page("accuracy", "[Aa]ccuracy")
page("chosen and rejected log-ratios", "[Rr]ejected")
page("scores under each sample", 'class="(score|told)')


@fault(13, "no headline of no over-optimisation beside a spread under the page's line", "no judge fell, but spread began and is below 85")
def headline(user: User) -> str:
    judged = {"every": 1, "samples": 2, "judges": {"gold": "own.better"}, "metrics": {"variety": "own.narrow"}}
    user.train(PIPELINE, {"steps": 5, "evaluation": {**judged, "call": {"num_inference_steps": 2}}})
    return "\n".join(line for line in (user.folder / "runs/r/report.html").read_text().splitlines() if "<title>" in line)


@fault(13, "kl of offline token runs is measured", '"kl": [0-9.]')
def kl(user: User) -> str:
    user.train(OFFLINE, {"steps": 3})
    return (user.folder / "runs/r/metrics.jsonl").read_text()


# ---- 14


@fault(14, "a resume with changed prompts", "prompts: are others than those that this run began with")
def prompts(user: User) -> str:
    user.write("prompts.txt", "the name of\nif the value\n")
    change = {**STEPS, "prompts": {"use": "prompts", "path": "prompts.txt"}}
    user.train(ONLINE, {**change, "steps": 2, "optimizer": {"rate": 1e-3}})
    user.write("prompts.txt", "the name of\nreturn the\n")
    return user.train(ONLINE, {**change, "optimizer": {"rate": 1e-3}}, "--resume")


@fault(14, "a resume with changed records", "records: are others than those that this run began with")
def records(user: User) -> str:
    user.train(OFFLINE, {**STEPS, "steps": 2, "optimizer": {"rate": 1e-3}})
    user.write("pairs.jsonl", list(reversed(PAIRS)))
    return user.train(OFFLINE, {**STEPS, "optimizer": {"rate": 1e-3}}, "--resume")


@fault(14, "steps may grow where the decay follows it", "steps: 2 before, 4 now, and the rate follows them")
def grows(user: User) -> str:
    user.train(OFFLINE, {**STEPS, "steps": 2})
    return user.train(OFFLINE, STEPS, "--resume")


@fault(14, "steps grow under a decay of its own length", "finished after 4 steps")
def own_decay(user: User) -> str:
    decay = {"optimizer": {"rate": 1e-3, "decay": {"shape": "linear", "steps": 4}}}
    user.train(OFFLINE, {**STEPS, "steps": 2, **decay})
    return user.train(OFFLINE, {**STEPS, **decay}, "--resume")


@fault(14, "another learning rate goes through a warm start", "start from its weights")
def rate(user: User) -> str:
    user.train(OFFLINE, {"steps": 2})
    return user.train(OFFLINE, {"steps": 2, "optimizer": {"rate": 1e-4}}, "--resume")


# ---- 15


@fault(15, "a changed use replaces the node", "finished")
def replaced(user: User) -> str:
    return user.train(ONLINE, {"method": {"use": "dapo"}}, "method.use=gspo", "steps=1")


@fault(15, "lists can be set", "finished")
def lists(user: User) -> str:
    return user.train(ONLINE, {}, "prompts=[the name of, return the]", "steps=1")


@fault(15, "prompts: FILE", "finished")
def file(user: User) -> str:
    user.write("prompts.txt", "the name of\nif the value\n")
    return user.train(ONLINE, {"prompts": "prompts.txt", "steps": 1})


@fault(15, "red: my_rewards.redness", "finished")
def own_reward(user: User) -> str:
    return user.train(PIPELINE, {"rewards": {"red": "own.redness"}, "steps": 1})


def synonym(name: str, shows: str, base: dict[str, Any] = ONLINE) -> None:
    checked(15, base, {name: 1}, shows)


synonym("gradient_accumulation_steps", "gradient_accumulation_steps: .*micro_rows")
synonym("lr_scheduler", "lr_scheduler: .*optimizer.decay")
synonym("policy.resolution", "resolution: .*height", PIPELINE)
synonym("policy.negative_prompt", "negative_prompt", PIPELINE)
synonym("policy.num_images_per_prompt", "num_images_per_prompt: .*batch.group", PIPELINE)
synonym("learning_rate", "learning_rate: .*optimizer.rate")


@fault(15, "shell completion", "--show-completion|--install-completion")
def completion(user: User) -> str:
    return user.mmalign("--help")


@fault(15, "help names configs that exist", "^none is missing")
def named(user: User) -> str:
    import re

    from mmalign.rooms import resource

    words = " ".join(user.mmalign(command, "--help") for command in ("train", "check", "rehearse", "pairs", "compare", "sample"))
    names = sorted(
        set(re.findall(r"\b(?:digits|text|qwen25_vl_7b|sd35_medium|sdxl|wan21_1b|flux_dev|digit_scenes|moving_digits)/\w+", words))
    )
    missing = [name for name in names if not resource(f"configs/{name}.yaml").exists()]
    return f"{missing or 'none'} is missing of {names}"


@fault(15, "a Python call with a wrong keyword lists the right ones", "batchh: unknown key of online; nearest: batch")
def keyword(user: User) -> str:
    online: Any = mm.online
    return user.python("mm.online(..., batchh={})", lambda: online(batchh={}))


@fault(15, ".pyi stubs so that an editor completes mm.methods.", "def grpo|import grpo")
def stubs(user: User) -> str:
    from pathlib import Path

    return user.python("mmalign/methods/__init__.pyi", lambda: (Path(mm.__file__).parent / "methods" / "__init__.pyi").read_text())


# ---- 16


@fault(16, "images and videos to trackers", "events.out.tfevents")
def tracker(user: User) -> str:
    user.train(PIPELINE, {"steps": 1, "run.trackers": ["tensorboard"]})
    places = list((user.folder / "runs/r").rglob("events.out.tfevents*"))
    return user.python("ls runs/r", lambda: [(place.name[:20], b"samples" in place.read_bytes()) for place in places])


@fault(16, "samples as single files", r"\d\.png")
def single(user: User) -> str:
    user.train(PIPELINE, {"steps": 1})
    user.mmalign("sample", "runs/r", "--prompt", "a handwritten seven", "--count", "2", "--out", "single")
    return user.python("ls single", lambda: sorted(place.name for place in (user.folder / "single").iterdir()))


@fault(16, "samples as MP4", r"film.mp4 \d")
def film(user: User) -> str:
    done = user.mmalign(
        "sample",
        "moving_digits",
        "--prompt",
        "a seven moving left",
        "--count",
        "1",
        "--guidance",
        "best_of",
        "--reward",
        "moving_digits_proxy",
        "--out",
        "film.mp4",
    )
    place = user.folder / "film.mp4"
    return done + (f"\nfilm.mp4 {place.stat().st_size} bytes" if place.exists() else "")
