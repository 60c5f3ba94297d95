"""Runs whose rollouts a server samples: one that dies in the middle is named, and the run goes on with the next as if it had not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.runs import checkpoint
from mmalign.selftest.trials import contents, differing
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.engine_server import EngineServer
from tests.helpers.flat import transformers
from tests.helpers.small_run import rows


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def early(outputs: list[str], prompts: list[str]) -> torch.Tensor:
    """How early in the alphabet the letters are."""
    return torch.tensor(
        [sum(26.0 - ord(letter) + ord("a") for letter in text if letter.isalpha()) for text in outputs], dtype=torch.float64
    )


def trained(folder: Path, url: str, **more: Any) -> Path:
    """A run of four steps, every second one saved, that samples at a server."""
    policy = transformers(
        tiny_text.model(), tiny_text.tokenizer(), max_completion=4, lora={"rank": 2},
        engine={"url": url, "model": "base", "folder": str(folder.parent), "at_once": 2},
    )  # fmt: skip
    run = mm.online(
        policy, ["ab", "cd", "ef"], {"early": early}, mm.methods.grpo(), steps=4, batch={"prompts": 3, "group": 2},
        optimizer=mm.adamw(rate=0.1), evaluation={"every": 99, "samples": 2},
        run={"folder": str(folder), "checkpoint_every": 2, "name": "run", "trackers": ()}, **more,
    )  # fmt: skip
    return run.path


@pytest.mark.parametrize("dies", [True, False])
def test_a_server_that_fails_in_a_rollout_is_named_and_the_resumed_run_is_the_whole(dies: bool, tmp_path: Path) -> None:
    with EngineServer(tiny_text.model(), None) as server:
        whole = contents(trained(tmp_path / "whole", server.url))
        sent = [path for path, _ in server.requests]
    second = [number for number, path in enumerate(sent, 1) if path == "/v1/load_lora_adapter"][
        -3
    ]  # of four steps, whose rollouts are the last
    with EngineServer(tiny_text.model(), None) as server:
        server.change = lambda number, path, answer: (None if dies else {"choices": []}) if number == second + 3 else answer
        wanted = "no answer from URL/completions: .*resume" if dies else "URL gave 0 completions where 2 were asked for"
        with pytest.raises(UserError, match="policy.engine: " + wanted.replace("URL", server.url)):
            trained(tmp_path / "parts", server.url)
        assert checkpoint.newest_step(tmp_path / "parts" / "run" / "checkpoints") == 1
        with EngineServer(tiny_text.model(), None) as other:  # the one that lives on has the first try's adapters
            path = trained(tmp_path / "parts", (other if dies else server).url, resume=True)
    assert [name for name in differing(path, whole) if name != "config.yaml"] == []
    steps = [row for row in rows(path) if row["phase"] == "train"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4] and len({row["reward"] for row in steps}) > 1
