"""Every config of the text world: checked, and two steps of each run."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.config import build, check, load
from mmalign.rooms import resource
from mmalign.worlds.text import pairs
from mmalign.worlds.text.base import text


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in text()[0].named_parameters()}


@pytest.fixture(scope="module", autouse=True)
def made_once() -> Iterator[None]:
    """Pairs are the same for all methods; pages are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "text_pairs", functools.cache(pairs.text_pairs))
        patch.setattr("mmalign.recipes._run.build", lambda path: path)
        yield


def untrained(reference: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Another model without its run, its words a little louder than the base's; a set of parameters as the base has them."""
    if "policy" not in reference:
        return {"from": str(resource("assets/text/llama"))}
    model, tokenizer = text()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 1.3
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return {"policy": {key: value for key, value in reference["policy"].items() if key != "start"} | {"model": str(folder)}}


CONFIGS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "text").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_method_trains_text(name: str, base: dict[str, torch.Tensor], tmp_path: Path) -> None:
    config = load(f"text/{name}")
    assert check(config) == [] and config["run"]["name"] == f"text_{name}" and config["method"]["use"] == name
    if "references" in config:  # a run that would have been trained before: its folder holds the base itself
        config["references"] = {key: untrained(node, tmp_path / key) for key, node in config["references"].items()}
    if "records" in config:
        config["records"] = {"use": "text_pairs", "prompts": 8}
    config["batch"] |= {"records": 8} if "records" in config else {"prompts": 4, "epochs": 1}
    config["run"] |= {"folder": str(tmp_path), "checkpoint_every": 2}
    measured = {"references": config["evaluation"]["references"]} if "references" in config["evaluation"] else {}
    run = build({**config, "steps": 2, "evaluation": {"every": 2, "prompts": ["the value of"], "samples": 2, **measured}})
    rows = [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["phase"] == "train"]
    assert len(trained) == 2 and all(row["grad_norm"] > 0 and row["skipped"] == 0 for row in trained)
    known = {key: base.get(key, 0.0) for key in run.policy.parameters() if key in base or "lora_B" in key}  # which begin at 0
    moved = max(float((run.policy.parameters()[key].detach() - value).abs().max()) for key, value in known.items())
    assert moved > 1e-5
    before_and_after = [row["kl"] for row in rows if row["phase"] == "eval"]
    assert before_and_after[0] == 0 and before_and_after[-1] != 0  # measured, or missing (None)
