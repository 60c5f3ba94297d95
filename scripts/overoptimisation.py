"""Gold against KL, under one reward model and under the lower bound of an ensemble, with best-of-N and with PPO: when does it turn?

python scripts/overoptimisation.py                   # 5 maps drawn at random, with an ensemble of 4 each: some minutes on one core
python scripts/overoptimisation.py --members labels  # what the 4 of an ensemble do not share (MEMBERS)
python scripts/overoptimisation.py --world text --seeds 3 --no-ppo  # the text world; without --no-ppo a quarter of an hour, quiet
python scripts/overoptimisation.py --world text --seeds 3 --slow    # PPO at a lower rate, evaluated more often

Reward models learn from pairs that gold labels, one label in four turned round, and see them so often that they learn the wrong ones too.
What they choose, or train, is then judged by gold. Curves are fitted by what Gao, Schulman, Hilton (2022) found,
https://arxiv.org/abs/2210.10760, eq. 1 and 2, with d = sqrt(KL): d (alpha - beta d) of best-of-N, d (alpha - beta log d) of RL. A run that
is finished under --runs is not made again.
"""

from __future__ import annotations

import argparse
import functools
import math
import string
from collections.abc import Callable, Mapping, Sequence
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
from mmalign.worlds.tabular.mdp import optimum

FLIPPED, COUNT, RM_STEPS = 0.25, 4, 60
MEMBERS = {
    "shared": "one backbone, whose scores they are, of bagged records",
    "labels": "their pairs are the same, and one in four is turned round, of each another one",
    "samples": "their pairs are of samples of their own",
}
SAMPLES, COUNTS = 128, (1, 2, 4, 8, 16, 32, 64, 100)  # some samples cannot be read
SIZE, MAP_PAIRS = 6, 64  # cells of a side of a map, and what a member learns from


class Pace(NamedTuple):
    """Of PPO: its steps, how many of them lie between evaluations, and its rate."""

    steps: int
    every: int
    rate: float


class World(NamedTuple):
    """Where rewards are learned and followed.

    policy: what PPO trains, as it is at first. gold: who judges. pairs: seed -> pairs without wrong labels. scorer: number of scores -> a
    reward model, untrained. rate: at which it learns. held: pairs that it does not learn from. prompts, asked: of training and of
    evaluations. batch, samples: rows of a step of PPO, and samples of a prompt at an evaluation. floor: below which gold cannot fall.
    """

    policy: Callable[[], Any]
    gold: Callable[..., torch.Tensor]
    pairs: Callable[[int], list[Pair]]
    scorer: Callable[[int], Any]
    rate: float
    held: list[Pair]
    prompts: list[str]
    asked: list[str]
    batch: mm.Batch
    samples: int
    pace: Pace
    floor: float


@functools.cache
def text_world(number: int, *, slow: bool = False) -> World:
    """The same for every number: sentences, of which about every fifth of the base's is gold."""
    judge = mm.worlds.text_gold()

    @functools.cache
    def pairs(seed: int, prompts: int = 160, offset: int = 0) -> list[Pair]:
        drawn = mm.worlds.text_pairs(reward=judge, prompts=prompts, offset=offset, seed=seed)
        return [pair for pair in drawn if pair.strength == 1]

    def scorer(scores: int) -> Any:
        reader = mm.policies.transformers(*mm.worlds.text(model="small"), max_completion=24)
        return mm.policies.scorer(reader, scores=[f"member {number}" for number in range(scores)])

    return World(
        policy=lambda: mm.policies.transformers(*mm.worlds.text(), max_completion=20, heads=["value"]),
        gold=judge, pairs=pairs, scorer=scorer, rate=1e-3, held=pairs(0, 48, 256),
        prompts=mm.worlds.text_prompts(count=256), asked=mm.worlds.text_prompts(count=96, offset=320),
        batch=mm.Batch(prompts=16, group=8, epochs=2, micro_rows=128, missing="drop"), samples=2, floor=0.0,
        pace=Pace(steps=48, every=3, rate=3e-4) if slow else Pace(steps=40, every=5, rate=1e-3),
    )  # fmt: skip


@functools.cache
def map_world(number: int) -> World:
    """A map each of whose cells pays what is drawn from a normal distribution, and who walks on it for 12 steps from a corner.

    As of a model that was trained already, what the walker hardly does is worse: its logits are half of what is the most that there is to
    be had after each step, which is somewhere between what chance has, and the best.
    """
    letters = (string.ascii_letters + string.digits)[: SIZE * SIZE]
    paid = torch.randn(len(letters), generator=torch.Generator().manual_seed(number)).tolist()
    grid = mm.worlds.grid(
        rows=[letters[start : start + SIZE] for start in range(0, len(letters), SIZE)], starts=letters[0], ends=letters[-1],
        rewards={"gold": {letter: round(pay, 3) for letter, pay in zip(letters, paid, strict=True)}}, horizon=12, discount=1.0,
    )  # fmt: skip

    def scorer(scores: int) -> Any:
        if scores > 1:
            raise SystemExit("--members shared: takes --world text, whose reward models have a backbone")
        return mm.worlds.tabular_reward(world=grid, by="return")

    habits = (optimum(grid, grid.reward({"gold": 1.0}))[1][0] / 2).tolist()
    gold = mm.worlds.tabular_return(world=grid, reward="gold")

    def policy() -> Any:
        return mm.worlds.tabular(world=grid, start=habits, heads=["value"])

    def pairs(seed: int, count: int = MAP_PAIRS) -> list[Pair]:
        drawn = policy().sample(["0,0"] * count, 2, torch.Generator().manual_seed(seed))
        scores = gold(drawn.outputs, drawn.prompts).view(-1, 2).tolist()
        both = zip(drawn.outputs[::2], drawn.outputs[1::2], scores, strict=True)
        return [Pair("0,0", one, other, float(a > b), f"pair {n}") for n, (one, other, (a, b)) in enumerate(both) if a != b]

    return World(
        policy=policy, gold=gold, pairs=pairs, scorer=scorer, rate=0.1, held=pairs(999, 256),
        prompts=["0,0"], asked=["0,0"] * 32, batch=mm.Batch(prompts=1, group=64, epochs=2), samples=4, floor=-math.inf,
        pace=Pace(steps=60, every=3, rate=0.1),
    )  # fmt: skip


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
    def lost(self) -> float:
        """How much of its best gain gold has lost at the end."""
        return max(self.gold) - self.gold[-1]


def fitted(d: Sequence[float], gold: Sequence[float], form: str, floor: float = -math.inf) -> Curve:
    """Least squares in alpha and beta of ``d (alpha - beta d)``, or ``d (alpha - beta log d)`` of RL, through 0 at d = 0.

    floor: the gain below which gold cannot fall; points behind the first that is there say nothing of the law, and are left out.
    """
    end = next((number for number, gain in enumerate(gold) if gain <= floor), len(gold)) + 1
    x, y = (np.array([value for value, at in zip(values[:end], d[:end], strict=True) if at > 0]) for values in (d, gold))
    other = x if form == "best of n" else np.log(x)
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([x, -x * other], 1), y, rcond=None)
    return Curve(list(d), list(gold), form, float(alpha), float(beta))


def reward_model(folder: Path, world: World, kind: str, number: int, member: int) -> Any:
    """A trained member of an ensemble, ``shared`` all of them, as a reward. number: of the ensemble."""
    run, seed = folder / f"rm-{kind}-{number}-{member}", COUNT * number + member
    if not run.is_dir() or read(run).summary.get("steps") != RM_STEPS:
        pairs = world.pairs(seed if kind == "samples" else 0)
        wrong = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < FLIPPED
        noisy = [pair._replace(strength=1 - pair.strength) if flip else pair for pair, flip in zip(pairs, wrong.tolist(), strict=True)]
        done = mm.offline(
            world.scorer(COUNT if kind == "shared" else 1), noisy,
            mm.methods.bradley_terry(centre=0.01, bagging=0.7 if kind == "shared" else 1.0), steps=RM_STEPS,
            batch=mm.RecordBatch(records=32, micro_rows=64), optimizer=mm.adamw(rate=world.rate, warmup=5),
            evaluation=mm.Evaluation(every=RM_STEPS, records=world.held),
            run=mm.RunSettings(name=run.name, folder=str(folder), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
        refuse_interrupted(run, done)
    return mm.rewards.trained(str(run))


def refuse_interrupted(path: Path, done: Any) -> None:
    """Errors: SystemExit for a run that was stopped before its end."""
    if done.summary["status"] == "interrupted":
        raise SystemExit(f"{path.name}: interrupted, so it has no row; remove {path} and start again")


def ensemble(folder: Path, world: World, kind: str, number: int) -> dict[str, Any]:
    """Rewards by name: the members of ensemble number so and so."""
    if kind == "shared":
        return {"members": reward_model(folder, world, kind, number, 0)}
    return {f"member {member}": reward_model(folder, world, kind, number, member) for member in range(COUNT)}


def bound(k: float, spread: str) -> Any:
    """Of an ensemble: the mean less so much of what its members differ by."""
    return mm.combinations.lower_bound(k=k, spread=spread)  # type: ignore[arg-type]


def best_of(rewards: Mapping[str, Any], world: World, combine: Any) -> dict[str, Curve]:
    """By whom is chosen: ``one`` is the mean of what every member does by itself, ``bound`` the ensemble."""
    samples = world.policy().sample(world.asked[:32], SAMPLES, torch.Generator().manual_seed(0))
    named, gold = ask(rewards, samples.outputs, samples.prompts), world.gold(samples.outputs, samples.prompts)
    chosen_by = [*named.values(), combine(named, samples.group, samples.prompts)]
    tables = [
        np.nanmean([best_of_n(s, g, COUNTS) for s, g in zip(scores.view(-1, SAMPLES), gold.view(-1, SAMPLES), strict=True)], 0)
        for scores in chosen_by
    ]
    d = [math.sqrt(best_of_n_kl(count)) for count in COUNTS]
    values = {"one": np.mean(tables[:-1], 0), "bound": tables[-1]}
    return {name: fitted(d, (value - value[0]).tolist(), "best of n") for name, value in values.items()}


def ppo(rewards: Mapping[str, Any], world: World, combine: Any, seed: int, path: Path) -> Curve:
    """A run of PPO, its KL hardly paid for, with gold and the KL of its samples at every evaluation."""
    if not path.is_dir() or read(path).summary.get("steps") != world.pace.steps:
        done = mm.online(
            world.policy(), prompts=world.prompts, rewards=rewards, combine=combine, steps=world.pace.steps,
            method=mm.methods.ppo(beta=1e-3), batch=world.batch, optimizer=mm.adamw(rate=world.pace.rate, warmup=3),
            evaluation=mm.Evaluation(every=world.pace.every, samples=world.samples, prompts=world.asked, judges={"gold": world.gold}),
            run=mm.RunSettings(name=path.name, folder=str(path.parent), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
        refuse_interrupted(path, done)
    rows = read(path).evals
    d = [math.sqrt(max(0.0, row.get("kl", 0.0))) for row in rows]
    return fitted(d, [row["gold"] - rows[0]["gold"] for row in rows], "rl", floor=world.floor - rows[0]["gold"])


def apart(rewards: Mapping[str, Any], path: Path) -> list[float]:
    """By how much members differ, but for what each adds to all answers: at a run's first evaluation, where gold is best, and at its last.

    The standard deviation over members of each answer's score less the mean of the first evaluation's, over answers.
    """
    kept = read(path)
    answers, found, zero = dict(kept.answers), list[float](), None
    for row in (kept.evals[0], max(kept.evals, key=lambda row: row["gold"]), kept.evals[-1]):
        lines = answers[row["step"]]
        outputs, prompts = ([line[key] for line in lines] for key in ("answer", "prompt"))
        scores = torch.stack([*ask(rewards, outputs, prompts).values()])
        zero = scores.nanmean(1, keepdim=True) if zero is None else zero
        found.append(float((scores - zero).std(0, correction=0).nanmean()))
    return found


def turn(curve: Curve) -> str:
    """Where the fit is highest; none, where that is not within what was measured."""
    return f"{curve.peak:.2f}" if curve.peak < max(curve.d) else "none"


def told(curves: Mapping[str, list[Curve]]) -> str:
    """Markdown: for each, over ensembles, gold's best gain, where that is, what is lost of it at the end, the fit, and where it turns."""

    def each(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values) + (f" ({mean(values):.3f} +- {stdev(values):.3f})" if len(values) > 1 else "")

    lines = ["| by | best gain | at d | lost at the end | fit: alpha | beta | turns at d |", "|---" * 7 + "|"]
    for name, some in curves.items():
        columns = [[max(c.gold) for c in some], [c.d[c.gold.index(max(c.gold))] for c in some], [c.lost for c in some]]
        columns += [[c.alpha for c in some], [c.beta for c in some]]
        lines.append(f"| {name} | {' | '.join(map(each, columns))} | {', '.join(map(turn, some))} |")
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
    parser.add_argument("--world", choices=["map", "text"], default="map")
    parser.add_argument("--seeds", type=int, default=5, help="ensembles, and of maps as many maps")
    parser.add_argument(
        "--members", choices=list(MEMBERS), default="samples", help="; ".join(f"{kind}: {MEMBERS[kind]}" for kind in MEMBERS)
    )
    parser.add_argument("--k", type=float, default=1.0, help="how much of what members differ by is taken off")
    parser.add_argument("--spread", choices=["std", "variance"], default="std", help="by what they differ")
    parser.add_argument("--no-ppo", action="store_true")
    parser.add_argument("--slow", action="store_true", help="of the text world")
    parser.add_argument("--runs", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--draw", type=Path, help="where the picture goes, an .svg or .png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    curves: dict[str, list[Curve]] = {}
    folder, combine = given.runs / given.world, bound(given.k, given.spread)
    for number in range(given.seeds):
        world = text_world(0, slow=given.slow) if given.world == "text" else map_world(number)
        rewards = ensemble(folder, world, given.members, number)
        for name, curve in best_of(rewards, world, combine).items():
            curves.setdefault(f"best of n, {name}", []).append(curve)
        if not given.no_ppo:
            first = reward_model(folder, world, "labels" if given.members == "shared" else given.members, number, 0)
            kind = f"{given.members}{'-slow' if given.slow else ''}"
            by = f"bound-{given.k:g}-{given.spread}"
            for name, some, how in (("one", {"one": first}, None), (by, rewards, combine)):
                path = folder / f"ppo-{name}-{kind}-{number}"
                curves.setdefault(f"PPO, {name.partition('-')[0]}", []).append(ppo(some, world, how, number, path))
                far = ", ".join(f"{spread:.2f}" for spread in apart(rewards, path))
                print(f"{path.name}: members differ by {far}: at first, at gold's best, at the end", flush=True)
        print(f"after {number + 1} ensembles\n{told(curves)}", flush=True)
    if given.draw is not None:
        drawn(given.draw, curves)


if __name__ == "__main__":
    main()
