"""A LoRA, exported, and read in a clean process by diffusers, by peft and from its bare tensors; the script tries many more models."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[1] / "scripts" / "exports" / "verify.py"
NAMES = ("FluxPipeline", "PixArtSigmaPipeline", "LlamaForCausalLM")


def double(file: Path) -> None:
    """As a file without its scale: every B twice as large."""
    save_file({name: value * (2.0 if "lora_B" in name else 1.0) for name, value in load_file(str(file)).items()}, str(file))


def forget(file: Path) -> None:
    """Without the LoRA of one layer."""
    tensors = load_file(str(file))
    layer = sorted(tensors)[0].partition(".lora_")[0]
    save_file({name: value for name, value in tensors.items() if not name.startswith(f"{layer}.lora_")}, str(file))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three models and two damaged copies of the first, all read by one process."""
    script = runpy.run_path(str(SCRIPT))
    folder = tmp_path_factory.mktemp("cases")
    for name in NAMES:
        script["make"](name, folder)
    for name, damage in {"doubled": double, "forgotten": forget}.items():
        case = folder / name
        (case / "export" / "peft" / "transformer").mkdir(parents=True)
        for file in ("expected.safetensors", "case.json", "export/peft/transformer/adapter_config.json"):
            (case / file).write_bytes((folder / NAMES[0] / file).read_bytes())
        (case / "base").symlink_to(folder / NAMES[0] / "base")
        home = case / "export" / "peft" / "transformer" / "adapter_model.safetensors"
        home.write_bytes((folder / NAMES[0] / "export" / "peft" / "transformer" / "adapter_model.safetensors").read_bytes())
        damage(home)
    return {(row["case"], row["reader"]): script["wrong"](row) for row in script["read"](folder)}


def test_everybody_reads_the_change_that_was_trained(rows):
    readers = {name: {reader for case, reader in rows if case == name} for name in NAMES}
    peft = {"peft", "tensors of peft's file"}
    assert readers == {
        "FluxPipeline": {*peft, "diffusers", "tensors of diffusers' file"},
        "PixArtSigmaPipeline": {*peft, "merged weights"},
        "LlamaForCausalLM": peft,
    }
    assert {key: why for key, why in rows.items() if key[0] in NAMES and why} == {}


def test_a_file_that_says_something_else_is_seen(rows):
    assert "apart" in rows["doubled", "peft"] and "apart" in rows["doubled", "tensors of peft's file"]
    assert rows["forgotten", "peft"] and "other layers, such as transformer|" in rows["forgotten", "tensors of peft's file"]


def test_a_run_that_changed_nothing_is_no_proof():
    wrong = runpy.run_path(str(SCRIPT))["wrong"]
    row = {"odd": [], "worst": 0.0, "size": 0.0}
    assert "training changed nothing" in wrong(row) and wrong({**row, "size": 0.1}) == ""
    assert "apart" in wrong({**row, "size": 0.1, "worst": 2e-6}) and "apart" in wrong({**row, "size": 0.1, "worst": float("nan")})
