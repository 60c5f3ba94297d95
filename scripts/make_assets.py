"""Remakes assets/digits: the base generators that the digits configs align (about five minutes each on two cores).

    python scripts/make_assets.py            # both
    python scripts/make_assets.py dit        # one of them

Weights are kept as float16, which is lossless enough: the script prints accuracy and spread before and after rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mmalign.worlds.digits.base import train_base
from mmalign.worlds.digits.data import PROMPTS
from mmalign.worlds.digits.judges import digits_gold, digits_spread

ITERATIONS = {"dit": 4000, "sd3": 2500}


def numbers(pipe: object) -> str:
    """Gold accuracy and spread of 500 samples without guidance, 20 steps."""
    rows = PROMPTS * 50
    images = pipe(rows, num_inference_steps=20, generator=torch.Generator().manual_seed(1), output_type="pt").images  # type: ignore[operator]
    return f"gold {float(digits_gold()(images, rows).mean()):.3f}  spread {digits_spread()(images, rows)['spread_ratio']:.3f}"


def main(names: list[str]) -> None:
    """Trains and saves each base."""
    for name in names:
        pipe = train_base(name, iterations=ITERATIONS[name], progress=True)  # type: ignore[arg-type]
        pipe.set_progress_bar_config(disable=True)
        print(f"{name}: {numbers(pipe)}")
        pipe.to(torch.float16).to(torch.float32)
        print(f"{name}: {numbers(pipe)} after rounding to float16")
        folder = Path(__file__).parents[1] / "assets" / "digits" / name
        pipe.to(torch.float16).save_pretrained(folder)
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)


if __name__ == "__main__":
    main(sys.argv[1:] or list(ITERATIONS))
