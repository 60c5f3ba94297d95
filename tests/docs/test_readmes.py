"""Blocks of the pages beside the code: fragments of configs are checked inside of a whole one, Python runs, command lines are ones.

A block says what it is: ``yaml``, ``python``, ``sh``, or ``text`` for what is no code. ``...`` in a config stands for what is up to the
reader: keys may be missing there, and no other mistake is.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmalign as mm
from mmalign.config import check
from tests.docs.test_pages import ROOT, blocks, commands, options
from tests.docs.test_pages import check as check_line

FOLDERS = ("mmalign", "configs", "scripts")
PAGES = [page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("README.md")) if blocks(page)]
LANGUAGE = {"use": "transformers", "model": "some/model"}
PIPELINE = {"use": "diffusers", "pipeline": "some/pipeline"}
SCORER = {"use": "scorer", "of": LANGUAGE}
PROMPTS = {"prompts": ["a"], "rewards": {"short": {"use": "length", "most": 9}}}
WHOLE: list[dict[str, Any]] = [  # configs that a fragment may be a part of
    {"use": "online", "policy": LANGUAGE, "method": {"use": "grpo"}, "steps": 1, **PROMPTS},
    {"use": "online", "policy": PIPELINE, "method": {"use": "flow_grpo"}, "steps": 1, **PROMPTS},
    {"use": "offline", "policy": LANGUAGE, "method": {"use": "dpo"}, "records": {"use": "texts", "path": "p.jsonl"}, "steps": 1},
    {"use": "offline", "policy": SCORER, "method": {"use": "bradley_terry"}, "records": {"use": "texts", "path": "p.jsonl"}, "steps": 1},
    {"use": "make_pairs", "policy": LANGUAGE, "out": "pairs.jsonl", **PROMPTS},
    {"use": "serve_reward"},
]
STANDING_IN: dict[str, Any] = {  # what a Python block has from its reader
    "clip": lambda outputs, prompts: outputs.flatten(1).mean(1),
    "aesthetic": lambda outputs, prompts: outputs.flatten(1).std(1),
    "mm": mm,
}


def mistakes(text: str) -> list[str]:
    """Those of a fragment in the whole config where it has fewest."""
    put(text)
    open_ended = "..." in text
    fragment = yaml.safe_load(re.sub(r"(\w+): \.\.\.", r"\1: null", re.sub(r", \.\.\.(?=})", "", text)))
    found = []
    for whole in [{}] if "use" in fragment else WHOLE:
        lines = check({**whole, **fragment}, trust=True)
        found.append([line for line in lines if not (open_ended and re.search(r"missing|got None|None is", line))])
    return min(found, key=len)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_what_a_page_beside_the_code_shows_works(page, tmp_path, write_module, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_module("my_module.py", "def my_latent_reward():\n    return lambda latents, prompts: latents.flatten(1).mean(1)\n")
    for language, _, text in blocks(page):
        assert language in ("yaml", "python", "sh", "text"), f"a block of {page} says {language or 'nothing'}: {text}"
        if language == "yaml":
            assert mistakes(text) == [], text
        elif language == "python":
            pipe = mm.worlds.digits()
            small = text.replace('"a lighthouse at dusk"', '"a handwritten seven", num_inference_steps=2')
            names = {**STANDING_IN, "pipe": pipe, "reward": STANDING_IN["clip"]}
            exec(compile(small, str(page), "exec"), names)
        elif language == "sh":
            lines(text)


def test_commands_of_the_first_page_are_ones(tmp_path, write_module, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = blocks(ROOT / "README.md")
    assert {block.language for block in shown} == {"python", "yaml", "sh"}
    for block in shown:
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
    Path("prompts.txt").write_text("a\n", encoding="utf-8")
    write_module("my_rewards.py", "def brightness(outputs, prompts):\n    return outputs.flatten(1).mean(1)\n")
    for block in shown:
        if block.language == "sh":
            lines(block.text)


def put(text: str) -> None:
    """The files that a block names, in this folder."""
    for name in re.findall(r"\b[\w.]+\.(?:jsonl|txt|pem|key)\b", text):
        Path(name).write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")


def lines(text: str) -> None:
    put(text)
    for words in commands(text):
        words = [word for word in words if word != "..."]
        options(words)
        check_line(words)
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("python scripts/"):
            _, script, *words = shlex.split(line, comments=True)
            source = (ROOT / script).read_text(encoding="utf-8")
            assert all(f'"{word}"' in source for word in words if word.startswith("--")), line
        elif line.startswith("scripts/"):
            assert (ROOT / line.split()[0]).is_file(), line
        elif not line.startswith(("mmalign ", " ", "#", "pip install 'mmalign[", "curl ", "torchrun ", "accelerate launch ")):
            assert not line.strip(), f"no command that is known: {line}"


def test_mistakes_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mistakes("rewards: {short: {use: lenght, most: 9}}") and mistakes("evaluation: {callx: {height: 3}}")
    assert mistakes("rewards: {short: {use: judge, critereon: a, ...}}") and not mistakes("rewards: {short: {use: judge, ...}}")
    for line in ("mmalign train CONFIG --resumee", "mmalign trian x", "python scripts/digit_scenes.py dpo --sceeds 3", "mmalgin train x"):
        with pytest.raises(Exception):  # noqa: B017
            lines(line)
