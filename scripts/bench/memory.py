"""Peak memory and speed of rollout and update of an SD3 pipeline with random weights, for each option that trades one for the other.

    python scripts/bench/memory.py                       # SD3.5 medium at 512 px on a GPU, a small transformer without one
    python scripts/bench/memory.py --size small --out table.json
    python scripts/bench/memory.py --only base base+gradient_checkpointing

Each row is a process of its own: one call to warm up, then medians over ``--rounds``. A rollout samples and decodes; an update replays
all of its steps, with the backward pass. Memory is torch's own peak on a GPU and the peak of the resident set on a CPU (with
everything that is loaded: see the row ``base``). ``rate`` is the arithmetic that the row ``base`` has to do (counted by
``torch.utils.flop_counter``), over the seconds, over what one large matrix product in the same type reaches on the same machine:
what is computed twice, or is no product, lowers it.

Text encoders are those of a tiny twin, so that no weights are needed: the transformer reads their width (32) in place of 4096, and
what offloading real encoders saves is not in the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmalign.policies.settings import Lora, Memory, Schedule

# layers, heads of 64, layers with a second attention, sides of the latent, widths of the decoder. The large one is
# stabilityai/stable-diffusion-3.5-medium as its config.json has it: 24 layers of 24 heads, the first 13 with two attentions
SIZES: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "tiny": (2, 2, 1, 8, (32, 32, 32, 32)),
    "small": (4, 8, 2, 32, (32, 64, 64, 64)),
    "sd35-medium": (24, 24, 13, 64, (128, 256, 512, 512)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "micro_steps": {"micro_steps": 1},
    "storage": {"storage": "float8"},
    "slice_vae": {"slice_vae": True},
    "offload": {"offload": ["frozen", "references"]},
    "compile": {"compile": True},
}
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    **{f"base+{name}": option for name, option in OPTIONS.items()},
    "all but compile": {key: value for name, option in OPTIONS.items() if name != "compile" for key, value in option.items()},
    "all": {key: value for option in OPTIONS.values() for key, value in option.items()},
    "full weights": {"full": True},
    "full weights+offload": {"full": True, "offload": ["frozen", "references"]},
}


def pipeline(size: str) -> Any:
    """A StableDiffusion3Pipeline of random weights, on the CPU."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

    from mmalign.policies.twins.pipelines import twin

    layers, heads, dual, side, widths = SIZES[size]
    tiny = twin("StableDiffusion3Pipeline")
    old = tiny.transformer.config
    transformer = SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
        num_attention_heads=heads, caption_projection_dim=64 * heads, joint_attention_dim=old.joint_attention_dim,
        pooled_projection_dim=old.pooled_projection_dim, pos_embed_max_size=384, dual_attention_layers=tuple(range(dual)),
        qk_norm="rms_norm",
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=widths,
        layers_per_block=2, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    return StableDiffusion3Pipeline(**{**tiny.components, "transformer": transformer, "vae": vae})


class Peak:
    """The most memory since ``reset``, in bytes: torch's on a GPU, the resident set on a CPU (Linux; elsewhere since the start)."""

    def __init__(self, device: torch.device):
        self.device = device

    def reset(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform != "linux":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        assert match is not None
        return int(match[1]) * 1024


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one run on a GPU; on a CPU the time of this process on its one thread, which others cannot lengthen by much."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    waiting = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    waiting()  # for what was started before
    began = clock()
    run()
    waiting()
    return clock() - began


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product, the best of some."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b, device)
    return 2 * n**3 / min(timed(lambda: a @ b, device) for _ in range(10))


def one(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row, measured in this process."""
    from torch.utils.flop_counter import FlopCounterMode

    from mmalign.methods import flow_grpo
    from mmalign.policies.diffusers import diffusers
    from mmalign.training.optimizers import adamw
    from mmalign.training.updates.experience import Experience
    from mmalign.training.updates.learner import Learner

    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    option = dict(ROWS[name])
    micro_steps, device = option.pop("micro_steps", None), torch.device(args.device)
    lora = None if option.pop("full", False) else Lora()
    side, words = 8 * SIZES[args.size][3], 256 if args.size == "sd35-medium" else 32
    policy = diffusers(
        pipeline(args.size),
        lora=lora,
        dtype=args.dtype,
        device=args.device,
        call={"height": side, "width": side, "max_sequence_length": words},
        schedule=Schedule(steps=args.steps, guidance=4.5),
        memory=Memory(rows_at_once=args.rows, **option),
    )
    method = flow_grpo(ratio="per_step", clip=0.2, beta=0.0)
    learner = Learner(policy, method, adamw(rate=1e-4), steps=args.rounds + 1)
    signal = torch.linspace(-1, 1, args.rows, dtype=torch.float64)[:, None]
    kept: dict[str, Any] = {}

    def rollout() -> None:
        kept["rollout"] = policy.sample(["three red foxes"], args.rows, torch.Generator().manual_seed(0))

    def update() -> None:
        experience = [Experience(kept["rollout"], signal, torch.arange(args.rows))]
        learner.update(experience, micro_rows=args.rows, micro_steps=micro_steps, step=0)

    measured: dict[str, Any] = {"name": name}
    peak = Peak(device)
    for what, run in (("rollout", rollout), ("update", update)):
        if args.count:
            with FlopCounterMode(display=False) as counter:
                run()
            measured[f"{what}_flop"] = counter.get_total_flops()
        else:
            run()
        peak.reset()
        measured[f"{what}_seconds"] = statistics.median(timed(run, device) for _ in range(args.rounds))
        measured[f"{what}_bytes"] = peak.read()
    held = [*policy.denoiser.parameters(), *policy.denoiser.buffers()]
    measured["parameters"] = sum(p.numel() for p in policy.denoiser.parameters())
    measured["weights_bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in held)
    if args.count:
        measured["matrix_rate"] = matrix_rate(device, getattr(torch, args.dtype))
    return measured


def show(rows: list[Mapping[str, Any]], args: argparse.Namespace) -> None:
    """The table: memory in GiB, images per second, and how much of the matrix rate is used."""
    base = rows[0]
    print(
        f"{args.size}: {base['parameters'] / 1e6:,.0f} M parameters, {args.rows} images of {8 * SIZES[args.size][3]} px, "
        f"{args.steps} steps with guidance, {args.dtype} on {_card(args.device)}, {base['matrix_rate'] / 1e12:.3g} TFLOP/s in one product; "
        f"{base['rollout_flop'] / 1e12:.3g} TFLOP a rollout, {base['update_flop'] / 1e12:.3g} an update"
    )
    print(f"{'':27}{'denoiser':>10}{'rollout':^34}{'update':^34}")
    print(f"{'':27}{'GiB':>10}" + f"{'GiB':>10}{'images/s':>12}{'rate':>10}  " * 2)
    for row in rows:
        if "error" in row:
            print(f"{row['name']:27}{row['error']}")
            continue
        cells = f"{row['weights_bytes'] / 2**30:>10.2f}"
        for what in ("rollout", "update"):
            rate = base[f"{what}_flop"] / row[f"{what}_seconds"] / base["matrix_rate"]
            cells += f"{row[f'{what}_bytes'] / 2**30:>10.2f}{args.rows / row[f'{what}_seconds']:>12.3g}{rate:>10.1%}  "
        print(f"{row['name']:27}{cells}")


def _card(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "one thread of a CPU"


def main(args: argparse.Namespace) -> None:
    """Measures the rows that are wanted, one process each, and prints and keeps the table."""
    names = list(dict.fromkeys(["base", *(args.only or ROWS)]))
    rows: list[Mapping[str, Any]] = []
    for name in names:
        same = [f"--{key}={getattr(args, key)}" for key in ("size", "dtype", "device", "steps", "rows", "rounds")]
        command = [sys.executable, __file__, "--one", name, *same, *(["--count"] if name == "base" else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            error = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "failed")[:100]
            if name == "base":
                sys.exit(done.stderr)
            rows.append({"name": name, "error": error})
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(name, file=sys.stderr, flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows, args)


if __name__ == "__main__":
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="sd35-medium" if cuda else "small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if cuda else "float32")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--steps", type=int, default=10 if cuda else 4)
    parser.add_argument("--rows", type=int, default=8 if cuda else 4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ROWS)
    parser.add_argument("--out", help="a JSON file for the numbers")
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given)))
    else:
        main(given)
