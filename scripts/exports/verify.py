"""A LoRA of many models, trained for two steps, exported, and read in a clean process by those who have never heard of mmalign.

python scripts/exports/verify.py                  # 13 pipelines, 7 language models and two that see
python scripts/exports/verify.py "Flux*" Llama    # some of them, by the beginnings or patterns of their names
python scripts/exports/verify.py --keep FOLDER    # what was written stays

Readers are in ``reader.py``: diffusers' ``load_lora_weights``, peft's ``from_pretrained``, and the files' bare tensors, ``B @ A``.
Each must find the change of every layer that training made, to 1e-6, and no layer more. Models are tiny and random. Exit code 1
where one does not.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import mmalign as mm
from mmalign.policies.adapters import ADAPTER, lora_layers
from mmalign.policies.exports.language import auto_class
from mmalign.policies.twins import pipelines, texts, visions
from mmalign.records import Pair

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
CLOSE = 1e-6  # of a number of a layer's change
PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "SanaPipeline",
    "PixArtSigmaPipeline", "QwenImagePipeline", "WanPipeline", "LTXPipeline", "CogVideoXPipeline", "HunyuanVideoPipeline",
    "AudioLDM2Pipeline", "StableAudioPipeline",
)  # fmt: skip
LANGUAGE = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "MistralForCausalLM",
    "GPTNeoXForCausalLM",
    "GPT2LMHeadModel",
)
SEEING = ("LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration")
LORA = mm.Lora(rank=2, alpha=5)  # another scale than 1, which a reader has to find in the tensors


def loudness(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward of any outputs that are numbers."""
    return outputs.double().flatten(1).mean(1)


def train_pipeline(name: str, case: Path) -> Any:
    pipe = pipelines.twin(name)
    call = pipelines.call_arguments(pipe)
    pipe.save_pretrained(str(case / "base"))
    rows = 1 if name == "AudioLDM2Pipeline" else 64  # whose call takes one prompt
    policy = mm.policies.diffusers(
        str(case / "base"), call=call, lora=LORA, schedule=mm.Schedule(steps=3), memory=mm.Memory(rows_at_once=rows), device="cpu"
    )
    method = mm.methods.flow_grpo(ratio="per_step", clip=0.2, beta=0.0, std="none")
    run = mm.online(
        policy, ["a red fox"], {"loudness": loudness}, method, steps=2, batch=mm.Batch(prompts=1, group=3), optimizer=mm.adamw(rate=0.02),
        evaluation=mm.Evaluation(every=100, samples=1), run=mm.RunSettings(folder=str(case), trackers=()),
    )  # fmt: skip
    return run, dict(policy.denoisers), {}


def train_language(name: str, case: Path) -> Any:
    sees = name in SEEING
    model, words = visions.twin(name) if sees else texts.twin(name)
    model.save_pretrained(str(case / "base"))
    words.save_pretrained(str(case / "base"))
    ask: Any = "What is it?"
    if sees:
        Image.new("RGB", (56, 56), "red").save(case / "red.png")
        ask = [{"role": "user", "content": [{"type": "image", "path": str(case / "red.png")}, {"type": "text", "text": ask}]}]
    policy = mm.policies.transformers(
        str(case / "base"), lora=replace(LORA, targets="all-linear"), max_completion=16, device="cpu", dtype="float32"
    )
    run = mm.offline(
        policy, [Pair(ask, "it is red", "a dog", 1.0, "one")], mm.methods.dpo(beta=0.1), steps=2, batch=mm.RecordBatch(records=1),
        optimizer=mm.adamw(rate=0.02), evaluation=mm.Evaluation(every=100, samples=1, call={"max_completion": 2}),
        run=mm.RunSettings(folder=str(case), trackers=()),
    )  # fmt: skip
    return run, {"model": policy.model}, {"auto": auto_class(policy.model)}


def make(name: str, folder: Path) -> None:
    """Trains and exports one, and keeps beside it what training has changed."""
    case = folder / name
    case.mkdir()
    run, modules, more = train_pipeline(name, case) if name in PIPELINES else train_language(name, case)
    deltas = {
        f"{part}|{layer}": lora_layer.scaling[ADAPTER]
        * lora_layer.lora_B[ADAPTER].weight.double()
        @ lora_layer.lora_A[ADAPTER].weight.double()
        for part, module in modules.items()
        for layer, lora_layer in lora_layers(module).items()
    }
    save_file({key: delta.detach().contiguous() for key, delta in deltas.items()}, str(case / "expected.safetensors"))
    (case / "case.json").write_text(json.dumps(more))
    run.export(out=case / "export")


def read(folder: Path) -> list[dict[str, Any]]:
    """What the readers say, from a process that sees neither this folder nor PYTHONPATH."""
    reader = Path(__file__).with_name("reader.py")
    done = subprocess.run([sys.executable, "-I", str(reader), str(folder)], capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(f"reader.py: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def wrong(row: dict[str, Any]) -> str:
    """What is wrong with what a reader found; empty where nothing is."""
    if row["odd"]:
        return f"other layers, such as {row['odd'][0]}"
    if not row["size"] > 100 * CLOSE:
        return f"training changed nothing (at most {row['size']:.1g})"
    return "" if row["worst"] <= CLOSE else f"{row['worst']:.2g} apart"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings or patterns of names of models")
    parser.add_argument("--keep", type=Path, help="a new folder in which everything stays")
    given = parser.parse_args(arguments)
    known = (*PIPELINES, *LANGUAGE, *SEEING)
    names = [name for name in known if not given.names or any(fnmatch.fnmatch(name, f"{pattern}*") for pattern in given.names)]
    if not names:
        parser.error(f"no such model; takes {', '.join(known)}")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary) / "cases").resolve()
        folder.mkdir(parents=True)
        for name in names:
            print(f"training {name}", file=sys.stderr, flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make(name, folder)
        rows = read(folder)
    for row in rows:
        numbers = f"{row['layers']:4} layers  worst {row['worst']:.1e} of {row['size']:.1e}"
        print(f"{row['case']:34} {row['reader']:28} {numbers}  {wrong(row) or 'ok'}")
    silent = sorted(set(names) - {row["case"] for row in rows})
    bad = sum(bool(wrong(row)) for row in rows) + len(silent)
    print(f"{len(names)} models, {len(rows)} readings, {bad} wrong" + (f"; nothing was read of {', '.join(silent)}" if silent else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
