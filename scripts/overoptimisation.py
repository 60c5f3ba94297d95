"""Gold against KL, under one reward model and under the lower bound of an ensemble, with best-of-N and with PPO: when does it turn?

python scripts/overoptimisation.py                   # 3 ensembles of 4; 12 reward models, 6 runs of PPO: about a quarter of an hour, quiet
python scripts/overoptimisation.py --no-ppo          # best-of-N alone
python scripts/overoptimisation.py --slow            # PPO at a lower rate, evaluated more often: more points around the turn
python scripts/overoptimisation.py --shared          # the 4 of an ensemble are scores of one backbone, of bagged records

Reward models of the text world learn from pairs that the gold judge labels, one label in four turned round, and see them so often that they
learn the wrong ones too. What they choose, or train, is then judged by gold. Curves are fitted by what Gao, Schulman, Hilton (2022) found,
https://arxiv.org/abs/2210.10760, eq. 1 and 2, with d = sqrt(KL): d (alpha - beta d) of best-of-N, d (alpha - beta log d) of RL. A run that
is finished under --runs is not made again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch

import mmalign as mm
from mmalign.evaluation.best_of import best_of_n, best_of_n_kl
from mmalign.records import Pair
from mmalign.report.read import read
from mmalign.training.rollouts.feedback import ask

FLIPPED, MEMBERS, RM_STEPS = 0.25, 4, 60
PROMPTS, SAMPLES, COUNTS = 32, 128, (1, 2, 4, 8, 16, 32, 64, 100)  # some samples cannot be read


class Pace(NamedTuple):
    """Of PPO: its steps, how many of them lie between evaluations, and its rate."""

    steps: int = 40
    every: int = 5
    rate: float = 1e-3


SLOW = Pace(steps=48, every=3, rate=3e-4)


class Curve(NamedTuple):
    """Gold less what it was at first, over d = sqrt(KL), and the fit of it: ``form``, alpha, beta; peak: the d where the fit turns.

    Of a beta of 0 or less, it does not turn: infinite.
    """

    d: list[float]
    gold: list[float]
    form: str
    alpha: float
    beta: float

    @property
    def peak(self) -> float:
        """Where the fit is highest."""
        if self.beta <= 0:
            return math.inf
        return self.alpha / (2 * self.beta) if self.form == "best of n" else math.exp(min(self.alpha / self.beta - 1, 50.0))


def fitted(d: Sequence[float], gold: Sequence[float], form: str) -> Curve:
    """Least squares in alpha and beta of ``d (alpha - beta d)``, or ``d (alpha - beta log d)`` of RL, through 0 at d = 0."""
    x, y = (np.array([value for value, at in zip(values, d, strict=True) if at > 0]) for values in (d, gold))
    other = x if form == "best of n" else np.log(x)
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([x, -x * other], 1), y, rcond=None)
    return Curve(list(d), list(gold), form, float(alpha), float(beta))


def language_model() -> Any:
    """The world's, of which about every fifth answer is gold."""
    return mm.policies.transformers(*mm.worlds.text(), max_completion=20, heads=["value"])


def reward_model(folder: Path, seed: int, pairs: list[Pair], held: list[Pair], *, scores: int = 1) -> Path:
    """A trained one, whose labels are turned round by its seed."""
    run = folder / f"rm-{scores}-{seed}"
    if not run.is_dir() or read(run).summary.get("steps") != RM_STEPS:
        wrong = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < FLIPPED
        noisy = [pair._replace(strength=float(not flip)) for pair, flip in zip(pairs, wrong.tolist(), strict=True)]
        reader = mm.policies.transformers(*mm.worlds.text(model="small"), max_completion=24)
        mm.offline(
            mm.policies.scorer(reader, scores=[f"member {number}" for number in range(scores)]), noisy,
            mm.methods.bradley_terry(centre=0.01, bagging=1.0 if scores == 1 else 0.7), steps=RM_STEPS,
            batch=mm.RecordBatch(records=32, micro_rows=64), optimizer=mm.adamw(rate=1e-3, warmup=5),
            evaluation=mm.Evaluation(every=RM_STEPS, records=held),
            run=mm.RunSettings(name=run.name, folder=str(folder), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
    return run


def ensemble(folder: Path, number: int, pairs: list[Pair], held: list[Pair], *, shared: bool) -> dict[str, Any]:
    """Rewards by name: the members of ensemble number so and so, of separate backbones or of one."""
    if shared:
        return {"members": mm.rewards.trained(str(reward_model(folder, number, pairs, held, scores=MEMBERS)))}
    seeds = range(MEMBERS * number, MEMBERS * (number + 1))
    return {f"member {seed}": mm.rewards.trained(str(reward_model(folder, seed, pairs, held))) for seed in seeds}


def bound() -> Any:
    """Of an ensemble: the mean less one variance (UWO)."""
    return mm.combinations.lower_bound(k=1.0, spread="variance")


def best_of(rewards: Mapping[str, Any], samples: Any, gold: torch.Tensor) -> dict[str, Curve]:
    """By whom is chosen: ``one`` is the mean of what every member does by itself, ``bound`` the ensemble."""
    named = ask(rewards, samples.outputs, samples.prompts)
    chosen_by = [*named.values(), bound()(named, samples.group, samples.prompts)]
    tables = [
        np.nanmean([best_of_n(s, g, COUNTS) for s, g in zip(scores.view(-1, SAMPLES), gold.view(-1, SAMPLES), strict=True)], 0)
        for scores in chosen_by
    ]
    d = [math.sqrt(best_of_n_kl(count)) for count in COUNTS]
    values = {"one": np.mean(tables[:-1], 0), "bound": tables[-1]}
    return {name: fitted(d, (value - value[0]).tolist(), "best of n") for name, value in values.items()}


def ppo(rewards: Mapping[str, Any], name: str, combine: Any, seed: int, folder: Path, pace: Pace) -> Curve:
    """A run of PPO, its KL hardly paid for, with gold and the KL of its samples at every evaluation."""
    if not (folder / name).is_dir() or read(folder / name).summary.get("steps") != pace.steps:
        mm.online(
            language_model(), prompts=mm.worlds.text_prompts(count=256), rewards=rewards, combine=combine, steps=pace.steps,
            method=mm.methods.ppo(beta=1e-3),
            batch=mm.Batch(prompts=16, group=8, epochs=2, micro_rows=128, missing="drop"), optimizer=mm.adamw(rate=pace.rate, warmup=3),
            evaluation=mm.Evaluation(
                every=pace.every, samples=2, prompts=mm.worlds.text_prompts(count=96, offset=320), judges={"gold": mm.worlds.text_gold()}
            ),
            run=mm.RunSettings(name=name, folder=str(folder), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
    rows = read(folder / name).evals
    d = [math.sqrt(max(0.0, row.get("kl", 0.0))) for row in rows]
    return fitted(d, [row["gold"] - rows[0]["gold"] for row in rows], "rl")


def told(curves: Mapping[str, list[Curve]]) -> str:
    """Markdown: for each, over ensembles, gold's best and last gain, where the curve is highest, the fit, and its peak."""

    def each(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values) + (f" ({mean(values):.3f} +- {stdev(values):.3f})" if len(values) > 1 else "")

    lines = ["| by | best gain | at d | last gain | fit: alpha | beta | peak at d |", "|---" * 7 + "|"]
    for name, some in curves.items():
        columns = [[max(c.gold) for c in some], [c.d[c.gold.index(max(c.gold))] for c in some], [c.gold[-1] for c in some]]
        columns += [[c.alpha for c in some], [c.beta for c in some]]
        lines.append(f"| {name} | {' | '.join(map(each, columns))} | {', '.join(f'{c.peak:.2f}' for c in some)} |")
    return "\n".join(lines)


def drawn(path: Path, curves: Mapping[str, list[Curve]]) -> None:
    """Points and fits, a panel for best-of-N and one for PPO."""
    from matplotlib.figure import Figure

    forms = list(dict.fromkeys(curve.form for some in curves.values() for curve in some))
    figure = Figure(figsize=(5 * len(forms), 4))
    for panel, form in enumerate(forms, 1):
        axes = figure.add_subplot(1, len(forms), panel, title=form, xlabel="d = sqrt(KL)", ylabel="gold gained")
        for color, (name, some) in enumerate((name, some) for name, some in curves.items() if some[0].form == form):
            for curve in some:
                x = np.linspace(1e-3, max(curve.d), 100)
                axes.plot(curve.d, curve.gold, ".", color=f"C{color}")
                y = x * (curve.alpha - curve.beta * (x if form == "best of n" else np.log(x)))
                axes.plot(x, y, color=f"C{color}", label=name if curve is some[0] else None)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="ensembles")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--no-ppo", action="store_true")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--draw", type=Path, help="where the picture goes, an .svg or .png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    judge = mm.worlds.text_gold()
    pairs, held = (
        [pair for pair in mm.worlds.text_pairs(reward=judge, prompts=prompts, offset=offset) if pair.strength == 1]
        for prompts, offset in ((160, 0), (48, 256))
    )
    print(f"{len(pairs)} pairs, {len(held)} held out", flush=True)
    prompts = mm.worlds.text_prompts(count=PROMPTS, offset=320)
    samples = language_model().sample(prompts, SAMPLES, torch.Generator().manual_seed(0))
    gold = judge(samples.outputs, samples.prompts)
    curves: dict[str, list[Curve]] = {}
    for seed in range(given.seeds):
        rewards = ensemble(given.runs, seed, pairs, held, shared=given.shared)
        for name, curve in best_of(rewards, samples, gold).items():
            curves.setdefault(f"best of n, {name}", []).append(curve)
        if not given.no_ppo:
            kind, pace = f"{'shared' if given.shared else 'apart'}{'-slow' if given.slow else ''}", SLOW if given.slow else Pace()
            first = {"one": mm.rewards.trained(str(reward_model(given.runs, MEMBERS * seed, pairs, held)))}
            for name, some, combine in (("one", first, None), ("bound", rewards, bound())):
                curves.setdefault(f"PPO, {name}", []).append(ppo(some, f"ppo-{name}-{kind}-{seed}", combine, seed, given.runs, pace))
        print(f"after {seed + 1} ensembles, gold of the base {float(gold.mean()):.3f}\n{told(curves)}", flush=True)
    if given.draw is not None:
        drawn(given.draw, curves)


if __name__ == "__main__":
    main()
