"""Damages folders of models, and sees that loading them gives the whole model or one line that refuses it: no other error, no hang.

python scripts/fuzz/models.py                         # 3,000 folders
python scripts/fuzz/models.py --count 100 --seed 700  # the hundred cases from number 700 on
python scripts/fuzz/models.py --only 41 --keep out    # one folder again, kept as it was damaged

Folders of a language model (in one file and in shards), a model that sees, a pipeline, and adapters of peft's and diffusers': safetensors
and JSON in them are cut, flipped, overwritten, taken away and exchanged, tensors are left out, renamed and reshaped, and values of JSON
changed. A case is made from its number alone. Where a file of tensors was cut or taken away, or lacks a tensor, what was loaded has to be
the whole model to the bit: bits that were flipped inside of a tensor are another tensor, and no format says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import hashlib
import io
import json
import logging
import random
import resource
import runpy
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mmalign as mm
from mmalign.policies.exports.pipelines import export
from mmalign.policies.twins import pipelines, visions
from mmalign.rooms import resource as resources
from mmalign.types import UserError

damaged: Callable[[bytes, str, random.Random], bytes] = runpy.run_path(str(Path(__file__).with_name("data.py")))["damaged"]
BYTES = ("cut", "flip", "double", "drop", "overwrite", "junk", "swap")
WHOLE = ("gone", "empty", "folder", "other")  # a file away, of no bytes, a folder in its place, another file's bytes
INSIDE = {"json": ("value", "key"), "safetensors": ("left out", "renamed", "reshaped", "retyped", "one more")}
KEPT = ("cut", "gone", "empty", "folder", "left out", "renamed", "reshaped", "one more")  # of tensors: seen, or nothing lost
ODD = [
    None,
    True,
    False,
    0,
    -1,
    2,
    2.5,
    1e308,
    10**12,
    2**70,
    "",
    "x",
    "a\nb",
    [],
    {},
    [1, "a"],
    {"a": 1},
    "float16",
    "../../x",
    "os.system",
]
SLOW, MEMORY = 60.0, 12 * 2**30  # seconds for a folder, after which its traceback is printed and the script ends; bytes of this process


# ---- folders that nothing is wrong with


def language(place: Path, **more: Any) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(resources("assets/text/llama"))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": words.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, **ends)).save_pretrained(place, **more)
    words.save_pretrained(place)


def sees(place: Path) -> None:
    model, processor = visions.twin("Qwen2VLForConditionalGeneration")
    model.save_pretrained(place)
    processor.save_pretrained(place)


def pipeline(place: Path) -> None:
    pipelines.twin(pipelines.pipeline_class("StableDiffusionPipeline")).save_pretrained(place)


def peft_adapter(place: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 3}, init_lora_weights=False)
    get_peft_model(nn.ModuleDict({"q_proj": nn.Linear(4, 6), "v_proj": nn.Linear(6, 4)}), config).save_pretrained(str(place))


def diffusers_adapter(place: Path) -> None:
    pipe = _pipe()
    policy = mm.policies.diffusers(pipe, call=pipelines.call_arguments(pipe), device="cpu", lora=mm.Lora(rank=2, alpha=6.0))
    export(policy, place, base=_pipe)


def _pipe() -> Any:
    return pipelines.twin(pipelines.pipeline_class("StableDiffusionPipeline"))


# ---- how they are loaded, and what was


def load_language(place: Path) -> nn.Module:
    return mm.policies.transformers(str(place), device="cpu", max_completion=16).model  # type: ignore[no-any-return]


def load_pipeline(place: Path) -> nn.Module:
    pipe = mm.policies.diffusers(str(place), device="cpu").caller.pipe
    return nn.ModuleDict({name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)})


def load_peft(place: Path) -> nn.Module:
    from mmalign.policies.parameters import ParameterSets

    module = nn.ModuleDict({"q_proj": nn.Linear(4, 6), "v_proj": nn.Linear(6, 4)})
    return _adapted(module, ParameterSets(module, lora=mm.Lora(from_=str(place))))


def load_diffusers_lora(place: Path) -> nn.Module:
    from mmalign.policies.parameters import ParameterSets

    pipe = _pipe()
    return _adapted(pipe.unet, ParameterSets(pipe.unet, lora=mm.Lora(from_=str(place))))


def _adapted(module: nn.Module, sets: Any) -> nn.Module:
    """The adapter alone, with its scales: the base is random."""
    held = nn.ParameterDict({name.replace(".", "/"): p for name, p in module.named_parameters() if "lora_" in name})
    return nn.ModuleDict(
        {"adapter": held, "scales": nn.ParameterDict({k.replace(".", "/"): torch.tensor(float(v)) for k, v in sets.scales.items()})}
    )


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], nn.Module]]] = {
    "language": (language, load_language),
    "language in shards": (lambda place: language(place, max_shard_size="40KB"), load_language),
    "sees": (sees, load_language),
    "pipeline": (pipeline, load_pipeline),
    "peft": (peft_adapter, load_peft),
    "diffusers' adapter": (diffusers_adapter, load_diffusers_lora),
}
OFTEN = ("language", "language", "language in shards", "language in shards", "sees", "pipeline", "peft", "peft", "diffusers' adapter")


def digest(module: nn.Module) -> str:
    """Of all tensors, their names and types."""
    made = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        made.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


# ---- damage


def _value(content: bytes, way: str, rng: random.Random) -> bytes:
    """JSON with a value of it changed, or a key taken away or called otherwise."""
    made = json.loads(content)
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if not isinstance(node, dict | list):
            return
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 20)):
            spots.append((node, key))
            walk(node[key])

    walk(made)
    if not spots:
        return b"[]"
    node, key = rng.choice(spots[: rng.choice((20, len(spots)))])
    if way == "value":
        node[key] = copy.deepcopy(rng.choice(ODD))
    elif rng.random() < 0.5 and isinstance(node, dict):
        node[rng.choice(["", "x", f"{key}_"])] = node.pop(key)
    else:
        del node[key]
    return json.dumps(made).encode()


def _tensor(path: Path, way: str, rng: random.Random) -> None:
    held = load_file(path)
    name = rng.choice(sorted(held))
    value = held[name]
    if way == "left out":
        del held[name]
    elif way == "renamed":
        held[rng.choice([f"{name}x", name[1:], f"module.{name}"])] = held.pop(name)
    elif way == "reshaped":
        held[name] = rng.choice([value.flatten()[:-1].clone(), value.unsqueeze(0).contiguous(), torch.zeros(0), torch.cat([value, value])])
    elif way == "retyped":
        held[name] = value.to(rng.choice([torch.float16, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn]))
    else:
        held[rng.choice(["extra", f"{name}.extra", "model.layers.9.mlp.up_proj.weight"])] = torch.zeros(2, 2)
    save_file(held, path, metadata={"format": "pt"})


def damage(place: Path, rng: random.Random) -> tuple[str, str]:
    """(the file that was damaged, how)."""
    files = sorted(path for path in place.rglob("*") if path.suffix in (".json", ".safetensors"))
    path = rng.choice([file for file in files if file.suffix == rng.choice((".json", ".safetensors", ".safetensors"))] or files)
    way = rng.choice((*BYTES, *WHOLE, *2 * INSIDE[path.suffix[1:]]))
    if way in BYTES:
        content = path.read_bytes()
        if path.suffix == ".safetensors" and rng.random() < 0.5:  # in its header, which is what can be wrong
            end = 8 + int.from_bytes(content[:8], "little")
            path.write_bytes(damaged(content[:end], way, rng) + content[end:])
        else:
            path.write_bytes(damaged(content, way, rng))
    elif way in ("value", "key"):
        path.write_bytes(_value(path.read_bytes(), way, rng))
    elif way in WHOLE:
        path.unlink()
        if way == "empty":
            path.touch()
        elif way == "folder":
            path.mkdir()
        elif way == "other":
            shutil.copy(rng.choice([file for file in files if file != path] or [Path(__file__)]), path)
    else:
        _tensor(path, way, rng)
    return str(path.relative_to(place)), way


# ---- cases


@cache
def whole(kind: str, folder: Path) -> tuple[Path, str]:
    """A folder of a kind, and the digest of what is loaded from it."""
    place = folder / f"whole {kind}"
    KINDS[kind][0](place)
    return place, digest(KINDS[kind][1](place))


def case(seed: int, folder: Path, keep: Path | None = None) -> str:
    """How a case ended. Raises what loading should not, and AssertionError for a loss that nothing said."""
    rng = random.Random(f"models/{seed}")
    kind = rng.choice(OFTEN)
    sound, expected = whole(kind, folder)
    place = folder / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound, place)
    file, way = damage(place, rng)
    if keep is not None:
        shutil.copytree(place, keep)
    what = f"{kind}, {file}, {way}"
    try:
        loaded = KINDS[kind][1](place)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 1500:
            raise AssertionError(f"{what}: an error of {len(str(error))} letters or several lines") from error
        return "refused"
    except Exception as error:
        error.add_note(what)
        raise
    if file.endswith(".safetensors") and way in KEPT and digest(loaded) != expected:
        raise AssertionError(f"{what}: loaded, and other than the whole one")
    return "loaded"


@contextlib.contextmanager
def quiet() -> Any:
    """Without what libraries print and warn about files like these."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def run(count: int, seed: int, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Endings, and what went wrong, of ``count`` cases from number ``seed`` on."""
    endings, wrong = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as name:
        for number in range(seed, seed + count):
            faulthandler.dump_traceback_later(SLOW, exit=True)
            try:
                with quiet():
                    endings[case(number, Path(name), keep)] += 1
            except Exception as error:  # which is what is looked for
                place = "".join(traceback.format_tb(error.__traceback__)[-2:])
                notes = " ".join(error.__notes__) if getattr(error, "__notes__", None) else ""
                wrong.append(f"case {number}: {notes}: {type(error).__name__}: {str(error)[:300]}\n{place}")
            faulthandler.cancel_dump_traceback_later()
    return endings, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="how many folders")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="one case, by its number")
    parser.add_argument("--keep", type=Path, help="where to keep that folder, as it was damaged")
    options = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    count, seed = (options.count, options.seed) if options.only is None else (1, options.only)
    endings, wrong = run(count, seed, options.keep if options.only is not None else None)
    for line in wrong[:40]:
        print(line)
    print(f"{count} folders: {', '.join(f'{number} {ending}' for ending, number in sorted(endings.items()))}, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
