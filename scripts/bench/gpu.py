"""Images and tokens a second, model FLOP utilisation and peak memory of large models with random weights, ``torch.compile`` off and on.

    python scripts/bench/gpu.py                                   # all models on a GPU
    python scripts/bench/gpu.py sd35-medium --eager --rows 8
    python scripts/bench/gpu.py --tiny --device cpu               # every model's path with two layers: does it run

Shapes are those of stabilityai/stable-diffusion-3.5-medium, black-forest-labs/FLUX.1-dev, Wan-AI/Wan2.1-T2V-14B and
Qwen/Qwen2.5-VL-7B-Instruct, as their config.json have them, but for what a twin's encoders and VAE or a small processor ask for (channels
of latents, widths of embeddings, patches of 8 pixels). A rollout is sampled with the policy's kernel and decoded, without guidance; an
update replays every trained step with gradient (LoRA of rank 32, of generators with gradient checkpointing). Utilisation is the matrix
products of a pass, counted while one runs, without what checkpointing repeats, over the seconds, over the card's dense bf16 peak
(``--peak`` in TFLOP/s; known for some, those on SXM boards). On a CPU, and in float32, the peak is the rate of one large product. Each line
is a process of its own.

Not run on a GPU so far: what a test runs is ``--tiny --device cpu``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from measure import Table, machine, operations
from memory import Peak, matrix_rate, timed

import mmalign as mm
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0, "B200": 2250.0}  # TFLOP/s of dense bf16, by data sheets

# A transformer's class, its pipeline's, its config where that is not the twin's, and the call: as published, and as small as they go
GENERATORS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sd35-medium": (
        "SD3Transformer2DModel", "StableDiffusion3Pipeline",
        {"num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "dual_attention_layers": tuple(range(13)),
         "qk_norm": "rms_norm",
         "caption_projection_dim": 1536, "sample_size": 128, "pos_embed_max_size": 384},
        {"height": 1024, "width": 1024, "max_sequence_length": 256},
        {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128, "dual_attention_layers": (0,)},
    ),
    "flux": (
        "FluxTransformer2DModel", "FluxPipeline",
        {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56),
         "guidance_embeds": True},
        {"height": 1024, "width": 1024, "max_sequence_length": 512},
        {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
    ),
    "wan21-14b": (
        "WanTransformer3DModel", "WanPipeline",
        {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "freq_dim": 256,
         "rope_max_seq_len": 1024},
        {"height": 480, "width": 832, "num_frames": 33, "max_sequence_length": 512},
        {"num_layers": 2, "num_attention_heads": 2, "ffn_dim": 64},
    ),
}  # fmt: skip
LANGUAGE = "qwen25-vl-7b"
MODELS = (*GENERATORS, LANGUAGE)
SETTINGS = ("device", "dtype", "steps", "rows", "micro_rows", "rounds", "tokens", "peak")


@contextmanager
def made_in(args: argparse.Namespace) -> Iterator[None]:
    """Weights are made where they stay, in the type that they stay in: 14 G of them take 56 GB in float32 first, which few cards have."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    try:
        with torch.device(args.device):
            yield
    finally:
        torch.set_default_dtype(before)


def generator(name: str, args: argparse.Namespace) -> tuple[Any, Callable[[], Any]]:
    """A policy around a pipeline with the published shape, and what samples a rollout."""
    import diffusers

    from mmalign.policies.twins.pipelines import call_arguments, twin

    kind, pipeline, config, call, small = GENERATORS[name]
    pipe = twin(pipeline)
    config = {**dict(pipe.transformer.config), **config, **(small if args.tiny else {})}
    accepted = {key: value for key, value in config.items() if not key.startswith("_")}
    with made_in(args):
        transformer = getattr(diffusers, kind)(**accepted).to(getattr(torch, args.dtype))
    pipe.register_modules(transformer=transformer)
    if args.tiny:
        call = {**call, **call_arguments(pipe)}
        call = {key: value for key, value in call.items() if key in ("height", "width", "num_frames", "max_sequence_length")}
    policy = mm.policies.diffusers(
        pipe, lora=mm.Lora(rank=32), dtype=args.dtype, device=args.device, call=call,
        schedule=mm.Schedule(steps=args.steps, guidance=1.0),
        memory=mm.Memory(rows_at_once=args.rows, gradient_checkpointing=True, slice_vae=True, compile=args.compile),
    )  # fmt: skip
    return policy, lambda: policy.sample(["three red foxes"], args.rows, torch.Generator().manual_seed(0))


def language(args: argparse.Namespace) -> tuple[Any, Callable[[], Any]]:
    """A policy around a vision-language model of the published shape, and what samples answers about an image."""
    import transformers as library
    from PIL import Image
    from vlm import qwen2_vl  # for its processor and its special tokens

    _, processor = qwen2_vl()
    ids = {
        key: processor.tokenizer.convert_tokens_to_ids(f"w{3996 + place}") for place, key in enumerate(("end", "start", "video", "image"))
    }
    text: dict[str, Any] = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }  # fmt: skip
    vision: dict[str, Any] = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "patch_size": 8,
    }
    if args.tiny:
        few = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        text |= {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 256, **few}
        vision |= {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 256}
        vision["fullatt_block_indexes"] = [1]
    config = library.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image"], video_token_id=ids["video"],
        vision_start_token_id=ids["start"], vision_end_token_id=ids["end"], tie_word_embeddings=False,
    )  # fmt: skip
    with made_in(args):
        model = library.Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, args.dtype))
    policy = mm.policies.transformers(
        model,
        processor,
        max_completion=args.tokens,
        lora=mm.Lora(rank=32),
        device=args.device,
        memory=mm.TextMemory(rows_at_once=args.rows),
    )
    picture = Image.new("RGB", (448, 448) if not args.tiny else (64, 64), (200, 30, 30))
    question = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "w5 w6 w7"}]}]
    return policy, lambda: policy.sample([question], args.rows, torch.Generator().manual_seed(0))


def things(name: str) -> str:
    """What a case's rows are counted in."""
    if name == LANGUAGE:
        return "tokens"
    return "videos" if name.startswith("wan") else "images"


def one(name: str, args: argparse.Namespace) -> dict[str, float]:
    """A line, measured in this process."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    device, kept = torch.device(args.device), dict[str, Any]()
    policy, sample = language(args) if name == LANGUAGE else generator(name, args)
    method = mm.methods.grpo(beta=0.0) if name == LANGUAGE else mm.methods.flow_grpo(beta=0.0)
    learner = Learner(policy, method, mm.adamw(rate=1e-5), steps=args.rounds + 2)

    def rollout() -> None:
        kept["rollout"] = sample()

    def update() -> None:
        signal = method.signal(Feedback(torch.arange(args.rows).double(), kept["rollout"].group))
        experience = [Experience(kept["rollout"], signal, torch.arange(args.rows))]
        learner.update(experience, micro_rows=args.micro_rows, step=0)

    peak, measured = Peak(device), {"parameters": float(sum(p.numel() for p in held(policy).parameters()))}
    for what, run in (("rollout", rollout), ("update", update)):
        run()
        measured[f"{what}_flop"] = float(operations(run)) if not args.compile else 0.0
        peak.reset()
        measured[f"{what}_seconds"] = statistics.median(timed(run, device) for _ in range(args.rounds))
        measured[f"{what}_bytes"] = float(peak.read())
    if name != LANGUAGE:  # checkpointing runs the trained steps' passes once more
        measured["update_flop"] -= measured["rollout_flop"] * (args.steps - 1) / args.steps
    measured["things"] = float(kept["rollout"].mask.sum()) if name == LANGUAGE else float(args.rows)
    measured["peak_rate"] = args.peak * 1e12 if args.peak else matrix_rate(device, getattr(torch, args.dtype))
    return measured


def held(policy: Any) -> torch.nn.Module:
    """The module that is trained."""
    module: torch.nn.Module = vars(policy).get("denoiser") or vars(policy)["model"]
    return module


def lines(args: argparse.Namespace) -> None:
    """The table, one process for each model and mode."""
    on_gpu = args.device.startswith("cuda")
    card = torch.cuda.get_device_name(args.device) if on_gpu else "a CPU"
    print(f"{card}; {machine()}")
    known = PEAKS if on_gpu and args.dtype == "bfloat16" else {}
    args.peak = args.peak or next((rate for name, rate in known.items() if name in card), 0.0)
    table = Table(
        "Large shapes, random weights", "model", "parameters", "compile", "rollout, a second", "utilisation", "peak GiB",
        "update, a second", "utilisation", "peak GiB",
    )  # fmt: skip
    for name in args.models or MODELS:
        flop: Mapping[str, float] = {}
        for compiled in (False, True)[: 1 if args.eager else 2]:
            same = [f"--{key.replace('_', '-')}={getattr(args, key)}" for key in SETTINGS]
            flags = [*(["--tiny"] if args.tiny else []), *(["--compile"] if compiled else [])]
            command = [sys.executable, "-W", "ignore", __file__, "--one", name, *same, *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "failed")
                table.row(name, "", "on" if compiled else "off", why[:160])
                continue
            measured = json.loads(done.stdout.splitlines()[-1])
            flop = flop or measured  # the products are those of the pass that is not compiled
            cells, unit = [], things(name)
            for what in ("rollout", "update"):
                seconds = measured[f"{what}_seconds"]
                used = flop[f"{what}_flop"] / seconds / measured["peak_rate"]
                cells += [
                    f"{measured['things'] / seconds:.3g} {unit}",
                    f"{used:.1%}" if used > 0 else "-",
                    f"{measured[f'{what}_bytes'] / 2**30:.2f}",
                ]
            table.row(name, f"{measured['parameters'] / 1e9:.3g} G", "on" if compiled else "off", *cells)


if __name__ == "__main__":
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--micro-rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of the card in dense bf16")
    parser.add_argument("--eager", action="store_true", help="without torch.compile alone")
    parser.add_argument("--tiny", action="store_true", help="two layers of each")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given)))
    else:
        lines(given)
