"""Gold against KL, under one reward model and under the lower bound of an ensemble, with best-of-N and with PPO: when does it turn?

python scripts/overoptimisation.py                   # 3 ensembles of 4; 12 reward models, 6 runs of PPO: about a quarter of an hour, quiet
python scripts/overoptimisation.py --no-ppo          # best-of-N alone
python scripts/overoptimisation.py --members labels  # what the 4 of an ensemble do not share (MEMBERS_OF)

Reward models of the text world learn from pairs that the gold judge labels, one label in four turned round, and see them so often that they
learn the wrong ones too. What they choose, or train, is then judged by gold. Curves are fitted by what Gao, Schulman, Hilton (2022) found,
https://arxiv.org/abs/2210.10760, eq. 1 and 2, with d = sqrt(KL): d (alpha - beta d) of best-of-N, d (alpha - beta log d) of RL, as far as
gold can fall: from where on it is 0, the law says nothing. A run that is finished under --runs is not made again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
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
from mmalign.training.feedback import ask
from mmalign.worlds.text.base import train_base

FLIPPED, MEMBERS, RM_STEPS = 0.25, 4, 60
MEMBERS_OF = {
    "shared": "one backbone, whose scores they are, of bagged records",
    "labels": "the same pairs and the same pretrained model, wrong labels of their own",
    "samples": "wrong labels and samples of the base of their own",
    "backbones": "wrong labels, samples, a pretrained model and a head's start of their own",
}
STEPS, EVERY, RATE = 48, 3, 3e-4  # of PPO
PROMPTS, SAMPLES, COUNTS = 32, 128, (1, 2, 4, 8, 16, 32, 64, 100)  # some samples cannot be read


class Curve(NamedTuple):
    """Gold less what it was at first, over d = sqrt(KL), and the fit of it: ``form``, alpha, beta."""

    d: list[float]
    gold: list[float]
    form: str
    alpha: float
    beta: float

    @property
    def peak(self) -> float:
        """The d where the fit is highest; of a beta of 0 or less, it does not turn: infinite."""
        if self.beta <= 0:
            return math.inf
        return self.alpha / (2 * self.beta) if self.form == "best of n" else math.exp(min(self.alpha / self.beta - 1, 50.0))

    @property
    def back(self) -> float:
        """The d at which, behind its best, gold is first what it was at the start, between two points by a line; infinite: nowhere."""
        best = self.gold.index(max(self.gold))
        for at, after in itertools.pairwise(range(best, len(self.d))):
            if self.gold[after] <= 0:
                share = self.gold[at] / (self.gold[at] - self.gold[after]) if self.gold[at] > 0 else 0.0
                return self.d[at] + share * (self.d[after] - self.d[at])
        return math.inf


def fitted(d: Sequence[float], gold: Sequence[float], form: str, floor: float = -math.inf) -> Curve:
    """Least squares in alpha and beta of ``d (alpha - beta d)``, or ``d (alpha - beta log d)`` of RL, through 0 at d = 0.

    floor: the gain below which gold cannot fall; points behind the first that is there are left out.
    """
    end = next((number for number, gain in enumerate(gold) if gain <= floor), len(gold)) + 1
    x, y = (np.array([value for value, at in zip(values[:end], d[:end], strict=True) if at > 0]) for values in (d, gold))
    other = x if form == "best of n" else np.log(x)
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([x, -x * other], 1), y, rcond=None)
    return Curve(list(d), list(gold), form, float(alpha), float(beta))


def language_model() -> Any:
    """The world's, of which about every fifth answer is gold."""
    return mm.policies.transformers(*mm.worlds.text(), max_completion=20, heads=["value"])


def backbone(folder: Path, seed: int) -> Path:
    """A model like the small one, pretrained from another start."""
    path = folder / f"backbone-{seed}"
    if not path.is_dir():
        for part in train_base(iterations=150, width=32, layers=1, seed=1 + seed):
            part.save_pretrained(path)
    return path


@functools.cache
def pairs_of(prompts: int, offset: int, seed: int = 0) -> list[Pair]:
    """Of the base's samples, labelled by gold, without ties."""
    pairs = mm.worlds.text_pairs(reward=mm.worlds.text_gold(), prompts=prompts, offset=offset, seed=seed)
    return [pair for pair in pairs if pair.strength == 1]


def reward_model(folder: Path, kind: str, seed: int, held: list[Pair]) -> Path:
    """A trained member of that kind of ensemble; ``shared``: all of them. seed: of what it has of its own."""
    run = folder / f"rm-{kind}-{seed}"
    if not run.is_dir() or read(run).summary.get("steps") != RM_STEPS:
        pairs = pairs_of(160, 0, seed if kind in ("samples", "backbones") else 0)
        wrong = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < FLIPPED
        noisy = [pair._replace(strength=float(not flip)) for pair, flip in zip(pairs, wrong.tolist(), strict=True)]
        model = (str(backbone(folder, seed)), None) if kind == "backbones" else mm.worlds.text(model="small")
        scores = [f"member {number}" for number in range(MEMBERS if kind == "shared" else 1)]
        done = mm.offline(
            mm.policies.scorer(
                mm.policies.transformers(*model, max_completion=24), scores=scores,
                head=mm.heads.linear(spread=0.02 if kind == "backbones" else 0.0, seed=seed),
            ),
            noisy, mm.methods.bradley_terry(centre=0.01, bagging=0.7 if kind == "shared" else 1.0), steps=RM_STEPS,
            batch=mm.RecordBatch(records=32, micro_rows=64), optimizer=mm.adamw(rate=1e-3, warmup=5),
            evaluation=mm.Evaluation(every=RM_STEPS, records=held),
            run=mm.RunSettings(name=run.name, folder=str(folder), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
        refuse_interrupted(run, done)
    return run


def refuse_interrupted(path: Path, done: Any) -> None:
    """Errors: SystemExit for a run that was stopped before its end."""
    if done.summary["status"] == "interrupted":
        raise SystemExit(f"{path.name}: interrupted, so it has no row; remove {path} and start again")


def ensemble(folder: Path, kind: str, number: int, held: list[Pair]) -> dict[str, Any]:
    """Rewards by name: the members of ensemble number so and so."""
    if kind == "shared":
        return {"members": mm.rewards.trained(str(reward_model(folder, kind, number, held)))}
    seeds = range(MEMBERS * number, MEMBERS * (number + 1))
    return {f"member {seed}": mm.rewards.trained(str(reward_model(folder, kind, seed, held))) for seed in seeds}


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


def ppo(rewards: Mapping[str, Any], combine: Any, seed: int, path: Path) -> Curve:
    """A run of PPO, its KL hardly paid for, with gold and the KL of its samples at every evaluation."""
    if not path.is_dir() or read(path).summary.get("steps") != STEPS:
        done = mm.online(
            language_model(), prompts=mm.worlds.text_prompts(count=256), rewards=rewards, combine=combine, steps=STEPS,
            method=mm.methods.ppo(beta=1e-3),
            batch=mm.Batch(prompts=16, group=8, epochs=2, micro_rows=128, missing="drop"), optimizer=mm.adamw(rate=RATE, warmup=3),
            evaluation=mm.Evaluation(
                every=EVERY, samples=2, prompts=mm.worlds.text_prompts(count=96, offset=320), judges={"gold": mm.worlds.text_gold()}
            ),
            run=mm.RunSettings(name=path.name, folder=str(path.parent), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
        refuse_interrupted(path, done)
    rows = read(path).evals
    d = [math.sqrt(max(0.0, row.get("kl", 0.0))) for row in rows]
    return fitted(d, [row["gold"] - rows[0]["gold"] for row in rows], "rl", floor=-rows[0]["gold"])


def disagreement(rewards: Mapping[str, Any], path: Path) -> list[float]:
    """How far the members are apart (standard deviation, over answers) at the start of a run, where its gold is best, and at its end."""
    rows, answers = read(path).evals, dict(read(path).answers)
    best = max(rows, key=lambda row: row["gold"])
    spreads = []
    for row in (rows[0], best, rows[-1]):
        lines = answers[row["step"]]
        outputs, prompts = ([line[key] for line in lines] for key in ("answer", "prompt"))
        spreads.append(float(torch.stack([*ask(rewards, outputs, prompts).values()]).std(0, correction=0).nanmean()))
    return spreads


def told(curves: Mapping[str, list[Curve]]) -> str:
    """Markdown: for each, over ensembles, gold's best gain, where that is, its last, where it is back at 0, the fit, and its peak."""

    def each(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values) + (f" ({mean(values):.3f} +- {stdev(values):.3f})" if len(values) > 1 else "")

    lines = ["| by | best gain | at d | last gain | back at d | fit: alpha | beta | peak at d |", "|---" * 8 + "|"]
    for name, some in curves.items():
        columns = [[max(c.gold) for c in some], [c.d[c.gold.index(max(c.gold))] for c in some], [c.gold[-1] for c in some]]
        columns += [[c.back for c in some], [c.alpha for c in some], [c.beta for c in some]]
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
    parser.add_argument(
        "--members", choices=list(MEMBERS_OF), default="backbones", help="; ".join(f"{kind}: {what}" for kind, what in MEMBERS_OF.items())
    )
    parser.add_argument("--no-ppo", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--draw", type=Path, help="where the picture goes, an .svg or .png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    judge, held = mm.worlds.text_gold(), pairs_of(48, 256)
    prompts = mm.worlds.text_prompts(count=PROMPTS, offset=320)
    samples = language_model().sample(prompts, SAMPLES, torch.Generator().manual_seed(0))
    gold = judge(samples.outputs, samples.prompts)
    curves: dict[str, list[Curve]] = {}
    for seed in range(given.seeds):
        rewards = ensemble(given.runs, given.members, seed, held)
        for name, curve in best_of(rewards, samples, gold).items():
            curves.setdefault(f"best of n, {name}", []).append(curve)
        if not given.no_ppo:
            alone = reward_model(given.runs, "labels" if given.members == "shared" else given.members, MEMBERS * seed, held)
            for name, some, combine in (("one", {"one": mm.rewards.trained(str(alone))}, None), ("bound", rewards, bound())):
                path = given.runs / f"ppo-{name}-{given.members}-{seed}"
                curves.setdefault(f"PPO, {name}", []).append(ppo(some, combine, seed, path))
                apart = ", ".join(f"{spread:.2f}" for spread in disagreement(rewards, path))
                print(f"{path.name}: members are apart by {apart} (at first, at gold's best, at the end)", flush=True)
        print(f"after {seed + 1} ensembles, gold of the base {float(gold.mean()):.3f}\n{told(curves)}", flush=True)
    if given.draw is not None:
        drawn(given.draw, curves)


if __name__ == "__main__":
    main()
