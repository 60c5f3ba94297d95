"""Remakes the base generators that the small configs align: assets/digits, assets/moving_digits, assets/token_digits, assets/calculator
and assets/digit_scenes, the classifier that is their proxy reward, the questions of assets/prompts/arithmetic.jsonl, and assets/pictures.

    python scripts/make_assets.py            # all of them
    python scripts/make_assets.py dit        # one of dit, sd3 (about five minutes each on two cores), moving_digits (two), token_digits
                                             # (two), calculator (two), llava, qwen2_vl (three and five on one core), distant (two, on
                                             # one core, from qwen2_vl), proxy (seconds), arithmetic, pictures (at once)

Weights of bases are kept as float16, which is lossless enough: the script prints what they can do before and after rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import make_arithmetic
import make_pictures
import torch
from safetensors.torch import save_file

from mmalign.environments.calculator import calculator as pocket_calculator
from mmalign.environments.tools import tools
from mmalign.policies.language.codes.image_tokens import image_tokens
from mmalign.policies.settings import Turns
from mmalign.policies.transformers import transformers
from mmalign.rewards.texts.exact_match import exact_match
from mmalign.worlds.calculator import base as calculator_base
from mmalign.worlds.calculator.data import calculator_prompts
from mmalign.worlds.digit_scenes import base as scenes_base
from mmalign.worlds.digit_scenes import distant
from mmalign.worlds.digit_scenes.judges import scene_hallucination
from mmalign.worlds.digit_scenes.scenes import digit_scenes_prompts
from mmalign.worlds.digits.base import train_base
from mmalign.worlds.digits.data import PROMPTS, real
from mmalign.worlds.digits.judges import digits_gold, digits_spread, train_proxy
from mmalign.worlds.moving_digits import base as moving
from mmalign.worlds.moving_digits import data as moving_data
from mmalign.worlds.moving_digits import judges as moving_judges
from mmalign.worlds.token_digits import base as token_base

ASSETS = Path(__file__).parents[1] / "assets"
ITERATIONS = {"dit": 4000, "sd3": 2500}


def numbers(pipe: object) -> str:
    """Gold accuracy and spread of 500 samples without guidance, 20 steps."""
    rows = PROMPTS * 50
    images = pipe(rows, num_inference_steps=20, generator=torch.Generator().manual_seed(1), output_type="pt").images  # type: ignore[operator]
    return f"gold {float(digits_gold()(images, rows).mean()):.3f}  spread {digits_spread()(images, rows)['spread_ratio']:.3f}"


def video_numbers(pipe: object) -> str:
    """Motion, identity and picture error of 400 videos of stills from half B, without guidance, 10 steps."""
    rows = moving_data.moving_digits_prompts(half="b", each=40)
    call = {**moving.CALL, **moving_data.moving_digits_stills()(rows), "guidance_scale": 1.0, "num_inference_steps": 10}
    seeded = [torch.Generator().manual_seed(number) for number in range(len(rows))]
    videos = pipe(prompt=rows, generator=seeded, output_type="pt", **call).frames  # type: ignore[operator]
    gold, identity = moving_judges.moving_digits_gold()(videos, rows), moving_judges.moving_digits_identity()(videos, rows)
    error = moving_judges.moving_digits_error()(videos, rows)["error"]
    return f"gold {float(gold.mean()):.3f}  identity {float(identity.mean()):.3f}  error {error:.3f}"


def make_moving_digits() -> None:
    """Trains and saves the video base."""
    pipe = moving.train_base(progress=True)
    print(f"moving_digits: {video_numbers(pipe)}")
    folder = ASSETS / "moving_digits" / "ltx"
    pipe.to(torch.float16).save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"moving_digits: {video_numbers(moving.moving_digits())} after rounding to float16")


def token_numbers(made: object, words: object) -> str:
    """Gold accuracy and spread of 500 samples without guidance, and what the codebook keeps of the scans of half B."""
    policy = image_tokens(transformers(made, words, max_completion=1))
    rows, (images, labels) = PROMPTS * 50, real("B")
    drawn = policy.generate(rows, list(range(len(rows))))
    kept = policy.pixels.decode(policy.pixels.encode(images))
    error, read = float((kept - images).square().mean().sqrt()), digits_gold()(kept, [PROMPTS[digit] for digit in labels.tolist()])
    spread = digits_spread()(drawn, rows)["spread_ratio"]
    gold = float(digits_gold()(drawn, rows).mean())
    return f"gold {gold:.3f}  spread {spread:.3f}  codebook error {error:.3f}, gold {float(read.mean()):.3f}"


def make_token_digits() -> None:
    """Trains and saves the base that writes codes."""
    made, words = token_base.train_base(progress=True)
    print(f"token_digits: {token_numbers(made, words)}")
    folder = ASSETS / "token_digits"
    made.to(torch.float16).save_pretrained(folder)
    words.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"token_digits: {token_numbers(*token_base.token_digits())} after rounding to float16")


def sum_numbers(made: object, words: object) -> str:
    """Right answers to 500 sums with the calculator: sampled, and greedy."""
    environment = tools({"calculate": pocket_calculator(operations=1)})
    policy = transformers(made, words, max_completion=40, turns=Turns(environment=environment))
    sums = calculator_prompts(count=500, offset=5000)
    asked, answers = [prompt.content for prompt in sums], [prompt.columns["answer"] for prompt in sums]
    shares = [
        exact_match()(policy.generate(asked, list(range(500)), temperature=heat), asked, answer=answers).mean() for heat in (1.0, 0.0)
    ]
    return f"right {float(shares[0]):.3f}  greedy {float(shares[1]):.3f}"


def make_calculator() -> None:
    """Trains and saves the base that works out sums."""
    made, words = calculator_base.train_base()
    print(f"calculator: {sum_numbers(made, words)}")
    folder = ASSETS / "calculator"
    made.to(torch.float16).save_pretrained(folder)
    words.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"calculator: {sum_numbers(*calculator_base.calculator())} after rounding to float16")


def scene_numbers(made: object, processor: object) -> str:
    """Inventions and recall of greedy captions of 500 held-out scenes."""
    prompts = digit_scenes_prompts(split="held_out", count=500)
    policy = transformers(made, processor, max_completion=scenes_base.ANSWER)
    metrics = scene_hallucination()(policy.generate(prompts, list(range(500)), temperature=0), prompts)
    return f"CHAIR_s {metrics['chair_s']:.3f}  recall {metrics['recall']:.3f}"


def make_digit_scenes(name: scenes_base.Model) -> None:
    """Trains and saves a vision-language base."""
    made, processor = scenes_base.train_base(name)
    print(f"{name}: {scene_numbers(made, processor)}")
    folder = ASSETS / "digit_scenes" / name
    made.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"{name}: {scene_numbers(*scenes_base.digit_scenes(model=name))} after rounding to float16")


def make_distant() -> None:
    """Trains and saves the base of scenes that have to be looked at closer."""
    made, processor = distant.train_base()
    folder = ASSETS / "digit_scenes" / "distant"
    made.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def main(names: list[str]) -> None:
    """Trains and saves each base."""
    for name in names:
        if name in ("arithmetic", "pictures"):
            (make_arithmetic if name == "arithmetic" else make_pictures).write()
            continue
        if name == "proxy":
            save_file(train_proxy().state_dict(), ASSETS / "digits" / "proxy.safetensors")
            (ASSETS / "digits" / "proxy.safetensors").chmod(0o644)
            continue
        if name == "moving_digits":
            make_moving_digits()
            continue
        if name == "token_digits":
            make_token_digits()
            continue
        if name in ("calculator", "distant"):
            (make_calculator if name == "calculator" else make_distant)()
            continue
        if name in scenes_base.PICTURE:
            make_digit_scenes(name)  # type: ignore[arg-type]
            continue
        pipe = train_base(name, iterations=ITERATIONS[name], progress=True)  # type: ignore[arg-type]
        pipe.set_progress_bar_config(disable=True)
        print(f"{name}: {numbers(pipe)}")
        pipe.to(torch.float16).to(torch.float32)
        print(f"{name}: {numbers(pipe)} after rounding to float16")
        folder = ASSETS / "digits" / name
        pipe.to(torch.float16).save_pretrained(folder)
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)


if __name__ == "__main__":
    main(
        sys.argv[1:]
        or ["arithmetic", "pictures", "proxy", *ITERATIONS, "moving_digits", "token_digits", "calculator", *scenes_base.PICTURE]
    )
