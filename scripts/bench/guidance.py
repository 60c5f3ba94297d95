"""Guidance on the digits base against best-of-N at equal cost, and RLG in closed form. Writes nothing into the repository.

python scripts/bench/guidance.py digits --out runs/guidance     (minutes on one core)
python scripts/bench/guidance.py rlg                            (a minute on one core)
"""

from __future__ import annotations

import argparse

import torch

from mmalign.commands.compare import compare
from mmalign.guidance._smc import effective_size, shares, systematic
from mmalign.guidance.correction import rlg_log_weight
from mmalign.guidance.extrapolation import extrapolate
from mmalign.samplers import kernels
from mmalign.types import Level, Prediction
from mmalign.worlds import gaussian
from mmalign.worlds.digits.base import digits
from mmalign.worlds.digits.data import PROMPTS
from mmalign.worlds.digits.judges import digits_gold, digits_proxy

SAMPLERS = [
    "dps scale=5", "mpgd scale=10", "universal scale=10", "freedom scale=5", "fk", "fk potential=max", "svdd", "das", "das gradient=false",
    "noise_search", "reno iterations=3", "dno iterations=3 rate=0.2",
]  # fmt: skip


def against_best_of_n(args: argparse.Namespace) -> None:
    """The base draws the digit that it is asked for about half of the time; the proxy guides, the gold judge is never seen."""
    settings = {"prompts": PROMPTS, "samples": args.samples, "seeds": args.seeds, "out": args.out, "say": print}
    print(compare(digits(), digits_proxy(), judge=digits_gold(), guidance=args.guidance or SAMPLERS, **settings).table())


def rlg(args: argparse.Namespace) -> None:
    """RLG between a mixture and its own tilt ``p exp(r)``: mean, variance and P(x > 0), without and with weights."""
    one = gaussian.one_gaussian([0.0], [1.0])
    means, spread = torch.tensor([[-2.0], [2.0]], dtype=torch.float64), torch.full((2, 1), 0.25, dtype=torch.float64)
    linear = gaussian.QuadraticReward(torch.tensor([0.4], dtype=torch.float64))
    quadratic = gaussian.QuadraticReward(torch.tensor([1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64))
    worlds = {
        "Gaussian, linear r": (one, linear),
        "Gaussian, quadratic r": (one, quadratic),
        "two modes .5/.5, linear r": (gaussian.Mixture(torch.tensor([0.5, 0.5], dtype=torch.float64), means, spread), linear),
        "rare mode .9/.1, linear r": (gaussian.Mixture(torch.tensor([0.9, 0.1], dtype=torch.float64), means, spread), linear),
    }
    print("| case | w | target mean / var / P(x>0) | RLG | RLG with weights |\n|---|---|---|---|---|")
    for name, (base, reward) in worlds.items():
        for scale in (0.5, 1.0, 1.6, 2.5, 4.0):
            target = gaussian.sample(gaussian.tilt(base, reward, beta=1 / scale), 200_000, torch.Generator().manual_seed(1))[:, 0]
            words = [_moments(target, torch.full_like(target, 1 / len(target)))]
            words += [_moments(*_sampled(base, reward, scale, args, correct=correct)) for correct in (False, True)]
            print(f"| {name} | {scale} | {' | '.join(words)} |", flush=True)


def _moments(x: torch.Tensor, weights: torch.Tensor) -> str:
    mean = float(weights @ x)
    return f"{mean:.3f} / {float(weights @ (x - mean) ** 2):.3f} / {float(weights @ (x > 0).double()):.3f}"


def _sampled(base, reward, scale: float, args: argparse.Namespace, *, correct: bool) -> tuple[torch.Tensor, torch.Tensor]:
    aligned, levels = gaussian.tilt(base, reward, beta=1.0), gaussian.flow_levels(args.steps)
    rng, kernel = torch.Generator().manual_seed(0), kernels.ddim(eta=1.0) if correct else kernels.ode()
    x = torch.randn((args.count, 1), generator=rng, dtype=torch.float64)
    log_weights = torch.zeros((1, args.count), dtype=torch.float64)
    for i in range(args.steps):
        t, t_next = (Level(levels.signal[j], levels.noise[j]) for j in (i, i + 1))
        low, high = gaussian.predict(base, x, t), gaussian.predict(aligned, x, t)
        mixed = Prediction(*(extrapolate(a, b, scale) for a, b in zip(low, high, strict=True)))
        if correct:
            apart = Prediction(*(b - a for a, b in zip(low, high, strict=True)))
            log_weights += rlg_log_weight(apart, t, t_next, scale=scale)
            if float(effective_size(log_weights)) < args.count / 2:
                parents = systematic(log_weights, rng)[0]
                x, mixed, log_weights = x[parents], Prediction(*(value[parents] for value in mixed)), torch.zeros_like(log_weights)
        mean, std = kernel(mixed, x, t, t_next)
        x = kernels.sample(mean, std, torch.randn(x.shape, generator=rng, dtype=torch.float64))
    return x[:, 0], shares(log_weights)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "rlg"])
    parser.add_argument("--guidance", action="append", help="as 'dps scale=5'; all of them by default")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", default=None)
    parser.add_argument("--count", type=int, default=50_000, help="samples in closed form")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    against_best_of_n(args) if args.what == "digits" else rlg(args)


if __name__ == "__main__":
    main()
