"""The table of how far a server is from the policy: against a server that is the same model, and others that are not."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny_text
from tests.helpers.engine_server import EngineServer

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "engine_parity.py"))


def saved(folder: Path, name: str, **more: Any) -> tuple[Any, str]:
    model = tiny_text.model(name, **more)
    model.save_pretrained(str(folder))
    tiny_text.tokenizer().save_pretrained(str(folder))
    return model, str(folder)


def prompts(folder: Path) -> list[str]:
    file = folder / "prompts.jsonl"
    file.write_text('"what is rain"\n"two + two?"\n')
    return ["--prompts", str(file), "--max-completion", "6", "--rows", "2"]


def test_the_same_models_agree_family_by_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families = ("qwen2", "llama", "gemma2")
    made = [saved(tmp_path / name, name) for name in families]
    servers = [EngineServer(model, None) for model, _ in made]
    try:
        pairs = [f"{server.url}={folder}" for server, (_, folder) in zip(servers, made, strict=True)]
        assert SCRIPT["main"]([*pairs, *prompts(tmp_path), "--tokens"]) == 0
    finally:
        for server in servers:
            server.kill()
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [name for name in families for _ in range(2)] and {row[2] for row in rows} == {"same"}
    assert all(float(row[6]) < 1e-4 for row in rows)
    assert sum(line.endswith(("e-05", "e-06", "e-07", "e-08", "e-09", "e+00")) for line in out.splitlines()) == sum(
        int(row[4]) for row in rows
    )


def test_other_weights_and_other_ids_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = saved(tmp_path / "model", "qwen2")
    with EngineServer(tiny_text.model("qwen2", seed=1), None) as server:
        assert SCRIPT["main"]([f"{server.url}={folder}", *prompts(tmp_path)]) == 1
        assert "| same |" in capsys.readouterr().out

        def misread(number: int, path: str, answer: Any) -> Any:
            for choice in answer["choices"]:
                choice["prompt_token_ids"] = [*choice["prompt_token_ids"][:3], 9, *choice["prompt_token_ids"][4:]]
            return answer

        server.change = misread
        assert SCRIPT["main"]([f"{server.url}={folder}", *prompts(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.count("| DIFFER |") == 2 and out.count("nan") == 4 and "token 3 is 9 'd' there and 25 't' here, behind 'wha'" in out
