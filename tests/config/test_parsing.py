"""Text that is no config, or too much of one, is refused in one line before it is built; fuzzed configs are fine or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmalign.config import check, load, parsing
from mmalign.types import UserError
from scripts.fuzz.configs import fuzz

LAUGHS = "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n" if before else f"{name}: &{name} [lol, lol, lol]\n"
    for before, name in zip(" abcdefgh".replace(" ", "\0"), "abcdefghi", strict=True)
).replace("*\0", "lol")

REFUSED = {
    "a billion laughs": (LAUGHS, "stands for"),
    "holds itself": ("use: online\npolicy: &p {of: *p}\n", "policy.of: holds itself"),
    "brackets": ("use: " + "[" * 5000, "is nested too deep"),
    "mappings": ("use: online\nlora: " + "{a: " * 60 + "1" + "}" * 60, "lora.a.a"),
    "lists": ("use: online\nlora: " + "[" * 60 + "]" * 60, "is nested too deep, a config takes at most 40 levels"),
    "digits": ("use: online\nbatch: {records: 1" + "0" * 5000 + "}", "batch.records: got a number of 5,001 digits, takes at most 40"),
    "a long fraction": ("use: online\nsteps: 0." + "1" * 5000, "steps: got a number of 5,002 digits"),
    "bytes": ("use: online\n# " + "x" * (5 * 2**20), "bytes, a config takes at most"),
    "not UTF-8": (b"use: online\nrun: {name: \xff\xfe}", "not readable as YAML: 'utf-8' codec"),
    "a nul": ("use: online\nrun: {name: a\x00b}", "not readable as YAML: unacceptable character #x0000"),
    "python": ("use: !!python/object/apply:os.system [exit]", "not readable as YAML: could not determine a constructor"),
    "no mapping for a key": ("{[a]: 1}", "not readable as YAML"),
    "two documents": ("use: online\n---\nuse: offline\n", "not readable as YAML: expected a single document"),
    "a key twice": ("use: online\nsteps: 2\nsteps: 3\n", "found duplicate key steps in line 3, column 1"),
    "a tab": ("use: online\nrun:\n\tname: a\n", "in line 3, column 1; lines are indented with spaces"),
    "a line too far in": ("use: online\nrun: a\n  name: b\n", "in line 3, column 7; is the line indented as its neighbours"),
    "an open bracket": ("use: online\nrun: {name: a\n", "in line 3, column 1, while parsing a flow mapping of line 2"),
    "UTF-16": ("use: online\n".encode("utf-16"), "takes UTF-8, save it as that"),
    "an interpolation of itself": ("use: online\nsteps: ${steps}", "steps"),
    "interpolations in a circle": ("a: ${b}\nb: ${c}\nc: ${a}", "nterpolation"),
    "an open interpolation": ("use: online\nsteps: ${", "not readable as YAML at steps: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_config_is_one_line(name: str, tmp_path: Path) -> None:
    text, words = REFUSED[name]
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        check(load(file))
        pytest.fail(f"was read: {load(file)}")
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    assert "<unicode string>" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["steps=" + "1" * 5000, "steps=" + "[" * 5000, "a=" + "{a: " * 100 + "}" * 100, "a=!!python/name:os", "a=\x00"]
)
def test_what_is_no_value_is_one_line(override: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("use: online\n")
    with pytest.raises(UserError) as caught:
        load(file, [override])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_aliases_are_fine_where_they_are_few(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("use: online\na: &a {x: [1, 2]}\nb: *a\nc: *a\n")
    assert load(file) == {"use": "online", "a": {"x": [1, 2]}, "b": {"x": [1, 2]}, "c": {"x": [1, 2]}}
    assert parsing.parsed("", "empty") == {}


def test_fuzzed_configs_are_fine_or_refused_in_lines() -> None:
    """A part of scripts/fuzz/configs.py, whose whole run of 10,000 anybody can do."""
    outcome = fuzz(300, seed=5)
    assert outcome.faults == [] and outcome.counts["fine"] > 10 and outcome.counts["refused"] > 100


def test_a_name_that_no_file_can_have_is_one_line() -> None:
    lines = check({**load("digits/demo"), "prompts": {"use": "prompts", "path": "1" * 5000}})
    assert [line[:40] for line in lines if line.startswith("prompts.path")] == ["prompts.path: no such file: 111111111111"]
