"""Prompt files, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmalign.data import prompts
from mmalign.types import Prompt, UserError


def written(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_text_file_has_a_prompt_to_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "p.txt", "  ein Würfel\n\n{not json}\na cat \n")
    assert prompts(path) == ["ein Würfel", "{not json}", "a cat"] and prompts(path, limit=2) == ["ein Würfel", "{not json}"]


def test_json_lines_have_it_under_a_key(tmp_path: Path) -> None:
    path = written(tmp_path, "p.jsonl", '{"prompt": "a cat", "text": "x"}\n\n{"prompt": "a dog", "text": "y"}\n')
    assert prompts(path) == [Prompt("a cat", {"text": "x"}), Prompt("a dog", {"text": "y"})]
    assert prompts(path, key="text", limit=1) == [Prompt("x", {"prompt": "a cat"})]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("p.txt", "\n \n", "got no prompts, takes one to a line"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "line 2: takes an object with a string, or a conversation, under 'prompt'"),
        ("p.jsonl", '["a"]\n', "line 1: got list, takes an object"),
        ("p.jsonl", '\n{"prompt": \n', "line 2: not JSON"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, text: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        prompts(written(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_limit_that_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts\.path: no such file"):
        prompts(str(tmp_path / "p.txt"))
    with pytest.raises(UserError, match="limit: got 0, takes 1 or more"):
        prompts(written(tmp_path, "p.txt", "a\n"), limit=0)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Würfel\n".encode("latin-1"))
    with pytest.raises(UserError, match="not readable as UTF-8 text"):
        prompts(str(latin))


def test_conversations_are_read_like_everywhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    seen = '[{"type": "image", "path": "a.png"}, {"type": "text", "text": "q"}]'
    turns = f'[{{"role": "SYSTEM", "content": "s"}}, {{"from": "human", "value": {seen}}}]'
    (prompt,) = prompts(written(tmp_path, "p.jsonl", f'{{"prompt": {turns}}}'))
    image = {"type": "image", "path": str(tmp_path / "a.png")}
    assert prompt == [{"role": "system", "content": "s"}, {"role": "user", "content": [image, {"type": "text", "text": "q"}]}]
    parts = '[{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, {"type": "image", "image": "data:image/png;base64,eHg="}]'
    (prompt,) = prompts(written(tmp_path, "p.jsonl", f'{{"prompt": [{{"role": "user", "content": {parts}}}]}}'))
    assert prompt == [{"role": "user", "content": [{"type": "image", "url": "https://x.org/a.png"}, {"type": "image", "bytes": b"xx"}]}]
    for odd, line in (
        ('[{"role": "critic", "content": "x"}]', "got role 'critic'"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', "names no image"),
    ):
        with pytest.raises(UserError, match=f"p.jsonl, line 1: .*{line}"):
            prompts(written(tmp_path, "p.jsonl", f'{{"prompt": {odd}}}'))


@pytest.mark.parametrize("row", [{"image": "a.png"}, {"Images": ["a.png", "b.png"]}, {"video": "a.mp4"}])
def test_a_picture_in_a_column_that_no_model_is_shown_is_named_once(tmp_path, row):
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{number}", **row}) + "\n" for number in range(3)))
    with pytest.warns(UserWarning, match=f"is not shown column {next(iter(row))!r}; takes picture_prompts") as told:
        prompts(str(file))
    assert len([one for one in told if "is not shown" in str(one.message)]) == 1


@pytest.mark.parametrize(("row", "files"), [({"image": "a.png"}, ["image"]), ({"image": "a dog"}, []), ({"answer": "a.png"}, [])])
def test_columns_that_rewards_read_are_not_named(tmp_path, row, files, recwarn):
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"prompt": "p", **row}) + "\n")
    prompts(str(file), files=files)
    assert not [one for one in recwarn if "is not shown" in str(one.message)]
