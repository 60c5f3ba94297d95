"""A league of the online methods that align image and video generators: the same base, the same reward, equal budgets of the denoiser.

    python scripts/bench/league.py                              # digits: all methods, about a minute of a processor for each
    python scripts/bench/league.py --world moving_digits --only draft flow_grpo
    python scripts/bench/league.py --seconds 240                # begins no run after that; started again it goes on
    python scripts/bench/league.py --only diffusion_nft --changes policy.draws=1 batch.group=4       # tried, and no part of the league
    python scripts/bench/league.py --page                       # writes LEAGUE.md and league_*.svg from what is there

Who takes part: every online config of ``configs/digits`` but those that ``LEFT_OUT`` names, and every method of the rooms of ``TEMPLATES``
that has none, under the config that its room names. A config says how its method samples and what it is called with; all else is the
league's: the reward is the world's proxy alone (a reward of weight 0, which a method reads beside, stays), 10 prompts a step in groups of
8, or of 2 where the reward's gradient is taken, AdamW at a constant rate; the weights are judged, and no average of them.

The search is the same for all: trials of a third of the budget and with a seed of their own, of two rates, times (on digits) two values of
one knob (``KNOBS``); the one whose gold is highest on average over its marks goes into the league, with three seeds, and (on digits) two
more where they differ.
Rows of the denoiser are counted as they go through it, of rollouts, references, preflight and updates alike, with gradient or without; an
evaluation's are not. Every finished run is a line of ``--results``.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from league_page import write
from measure import Calls, allocations, counted
from tqdm import tqdm

import mmalign as mm
from mmalign.config import build_part, load
from mmalign.config.overrides import override
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rooms import index, resource
from mmalign.types import Method, UserError, contents

FOLDER = Path(__file__).parent
LEFT_OUT = {
    "grpo": "demo under another name",
    "no_novelty": "flow_grpo's other settings, which demo has",
    "sd3": "another base",
    "lora": "demo on fewer parameters",
    **dict.fromkeys(("diffusion_opd", "dmd2", "dmd2_gan", "dmd2_one_step", "tdm"), "it follows a teacher, and no reward"),
    "flash_dmd": "it follows a teacher too, for students of few steps",
    "tdm_r1": "its reward is learned, for students of few steps",
}
TEMPLATES = {"denoising": "digits/demo", "forward_process": "digits/diffusion_nft", "reward_gradient": "digits/draft"}
"""Room of methods -> whose config serves a method without one."""

PUBLISHED = "flow_grpo"
"""Whom the others are compared with: Flow-GRPO as it was published."""

PROMPTS = 10
"""Of a step."""

STEPS = {"reward_gradient": (2, 4)}
"""Room of methods -> how many of a sampler's steps are tried in training; 4 and 8 in others."""

KNOBS: dict[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    PUBLISHED: (("method.clip", (1e-2, 1e-4)), ("policy.schedule.steps", (4, 8))),
    "refl": (("method.low", (3, 6)),),
}
"""What is searched beside the rate where it is not the sampler's steps alone: the published method, whom the others are held against, has
its clip, a hidden function of the latent's size, besides, so that its search is twice theirs."""

SETTINGS = {
    "diffusion_nft": ("method.growth=0.05",),
    "draft": ("method.last_steps=null",), "refl": ("method.low=6", "method.high=8"),
    "step_aware_po": ("policy.schedule.branches.children=2",),
    "b2_diffurl": ("policy.schedule.branches.children=4", "policy.schedule.window.smallest=2", "policy.schedule.window.largest=4"),
}  # fmt: skip
"""What is changed in a method's config, or in its template's: how far DiffusionNFT's set that samples lags behind grows over a dozen steps,
not over a thousand, DRaFT goes through all steps, ReFL's are those of 40, and branches divide groups of 8, in 4 steps as in 8."""

SEEDS, TRIAL_SEED = 3, 1000
DISAGREE = 0.05
"""More seeds are run where the gold of three is further apart."""


MARKS = tuple(round(125 * 2 ** (number / 2)) for number in range(24))
"""Rows, each the root of two times those before it."""


class World(NamedTuple):
    """Whose base and sampler (a config), who gives the reward, who judges, and how much each run may take.

    beside: further judges and metrics by column. exam: prompts of evaluations; samples: of each. budget: rows of the denoiser; long: most
    rows of the published method, which goes on until it gets to the target gold. rates: that are searched; values: how many of each knob.
    more: seeds, where three disagree. marks: rows at which a run is judged, up to its budget.
    """

    config: str
    proxy: str
    gold: str
    beside: Mapping[str, Mapping[str, str]]
    prompts: Mapping[str, Any]
    exam: Mapping[str, Any]
    samples: int
    budget: int
    long: int
    target: float
    rates: tuple[float, ...]
    values: int
    more: int
    marks: tuple[int, ...]


WORLDS = {
    "digits": World(
        "digits/demo", "digits_proxy", "digits_gold", {"metrics": {"spread": "digits_spread"}},
        {"use": "digit_prompts"}, {"use": "digit_prompts"}, samples=12, budget=12_000, long=48_000, target=0.9,
        rates=(1e-3, 3e-3), values=2, more=2, marks=MARKS,
    ),
    "moving_digits": World(
        "moving_digits/flow_grpo", "moving_digits_proxy", "moving_digits_gold", {"judges": {"identity": "moving_digits_identity"}},
        {"use": "moving_digits_prompts", "half": "a", "each": 8}, {"use": "moving_digits_prompts", "half": "b", "each": 8},
        samples=1, budget=6_000, long=6_000, target=0.8, rates=(3e-4, 1e-3), values=1, more=0, marks=MARKS[::2],
    ),
}  # fmt: skip


class Entry(NamedTuple):
    """Who takes part: a config, and what is changed in it."""

    config: str
    changes: tuple[str, ...] = ()


def entries() -> dict[str, Entry]:
    """name -> entry: the published method first, then the online configs of digits, then methods that have none."""
    folder = resource("configs/digits")
    configs = {path.stem: load(f"digits/{path.stem}") for path in sorted(folder.glob("*.yaml")) if path.stem not in LEFT_OUT}
    online = {name: node for name, node in configs.items() if node["use"] == "online"}
    found = {name: Entry(f"digits/{name}", SETTINGS.get(name, ())) for name in sorted(online, key=lambda name: (name != PUBLISHED, name))}
    have = {str(node["method"]["use"]) for node in online.values()}
    for room, template in TEMPLATES.items():
        for name in sorted(index(f"mmalign.methods.{room}")):
            if name not in have and name not in LEFT_OUT:
                found[name] = Entry(template, (f"method={{use: {name}}}", *SETTINGS.get(name, ())))
    return found


def family(entry: Entry) -> str:
    """The room of an entry's method."""
    node = load(entry.config, entry.changes)
    return index("mmalign.methods")[str(node["method"]["use"])][0].module.split(".")[2]


def node_of(world: World, entry: Entry, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The config of a run."""
    node, own = load(entry.config, entry.changes), load(world.config)["policy"]
    inner = node["policy"].get("of", node["policy"])
    inner.update({key: own[key] for key in ("pipeline", "conditions", "call", "memory") if key in own})
    inner["schedule"] = {**inner["schedule"], "guidance": 1.0}
    weights = node.get("combine", {}).get("weights", {})
    silent = {name: reward for name, reward in node["rewards"].items() if weights.get(name) == 0}
    node["rewards"] = {"proxy": {"use": world.proxy}, **silent}
    node["combine"] = {"use": "weighted_sum", "weights": {"proxy": 1.0, **dict.fromkeys(silent, 0.0)}}
    node["batch"] = {**node.get("batch", {}), "prompts": PROMPTS, "group": group_of(build_part(node, "method")), "resample": 0}
    for word in changes:
        override(node, word)
    return node


def trials(world: World, name: str, entry: Entry) -> list[tuple[str, ...]]:
    """The changes of each trial: every rate with every value of the knobs."""
    inner = "policy.of" if "of" in load(entry.config)["policy"] else "policy"
    knobs = KNOBS.get(name) or ((f"{inner}.schedule.steps", STEPS.get(family(entry), (4, 8))),)
    choices = [[f"{key}={value}" for value in values[: world.values]] for key, values in knobs]
    return list(itertools.product([f"optimizer.rate={rate}" for rate in world.rates], *choices))


class Enough(BaseException):
    """Ends a run from inside, as Ctrl-C would: it has had its budget."""


class Meter:
    """Rows of the denoiser and seconds of the processor since it began, but for what goes on while it is paused."""

    def __init__(self, calls: Calls):
        self.calls = calls
        self.begin()

    def begin(self) -> None:
        self.calls.number = self.calls.with_gradient = self.calls.without = 0
        self._paused, self._began = 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        return time.process_time() - self._began - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        calls, began = dict(vars(self.calls)), time.process_time()
        yield
        vars(self.calls).update(calls)
        self._paused += time.process_time() - began


class Exam:
    """What the policy of now is worth: fixed prompts and seeds, and its pipeline's own sampler."""

    def __init__(self, world: World, policy: Any):
        judged = build_part({"rewards": {"proxy": {"use": world.proxy}, "gold": {"use": world.gold}}}, "rewards")
        more = {kind: build_part({kind: {name: {"use": use} for name, use in named.items()}}, kind) for kind, named in world.beside.items()}
        self.policy, self.judges, self.metrics = policy, {**judged, **more.get("judges", {})}, more.get("metrics", {})
        self.prompts, self.samples = contents(build_part({"prompts": dict(world.exam)}, "prompts")), world.samples

    @torch.no_grad()
    def __call__(self, times: int = 1) -> dict[str, float]:
        """times: as many samples."""
        rows = [prompt for prompt in self.prompts for _ in range(times * self.samples)]
        outputs = self.policy.generate(rows, list(range(10**6, 10**6 + len(rows))), num_inference_steps=10)
        numbers = {name: float(judge(outputs, rows).mean()) for name, judge in self.judges.items()}
        for metric in self.metrics.values():
            numbers.update(metric(outputs, rows))
        return numbers


class Watch:
    """Looks at a run before each of its steps: is it time to judge it, and has it had enough?

    at: rows at which it is judged; full: at which on four times as many samples. budget: the most rows; target: gold that two marks beyond
    ``full`` have to have for a run to end before.
    """

    def __init__(self, meter: Meter, exam: Exam, *, at: Sequence[int], full: int, budget: int, target: float):
        self.meter, self.exam, self.full, self.budget, self.target = meter, exam, full, budget, target
        self.due, self.marks = (*at, full, budget), list[dict[str, float]]()

    def at(self, step: int) -> None:
        rows, before = self.meter.calls.rows, int(self.marks[-1]["rows"]) if self.marks else 0
        if passed := [mark for mark in self.due if before < mark <= rows]:
            seconds = self.meter.seconds
            with self.meter.paused():
                self.marks.append({"rows": rows, "seconds": round(seconds, 2), **self.exam(4 if self.full in passed else 1)})
        good = len(self.marks) > 1 and min(mark["gold"] for mark in self.marks[-2:]) >= self.target
        if rows >= self.budget or (good and rows >= self.full):
            raise Enough


class Scales:
    """Weighs a run's first step, which is all of it."""

    def __init__(self) -> None:
        self._block = allocations()

    def at(self, step: int) -> None:
        if step:
            self._block.__exit__(None, None, None)
            raise Enough
        self.peak = self._block.__enter__()


W = TypeVar("W", Watch, Scales)


def run(world: World, node: Mapping[str, Any], watch: Callable[[Meter, Any], W], *, seed: int) -> W:
    """A run up to where whoever watches it ends it. watch: made of the run's meter and policy, and asked before each step."""
    policy, method = build_part(node, "policy"), build_part(node, "method")
    rewards, combine = build_part(node, "rewards"), build_part(node, "combine")
    asked = build_part({"prompts": dict(world.prompts)}, "prompts")
    inner = policy.of if "of" in node["policy"] else policy
    inner.first(contents(asked)[:1])  # a schedule, which a first probe would look at, with a row that trains nobody
    with tempfile.TemporaryDirectory() as folder, counted(inner.denoiser) as calls:
        meter = Meter(calls)
        watching = watch(meter, policy)

        def at(step: int) -> None:
            if step == 0:
                meter.begin()  # the recipe has evaluated once
            watching.at(step)

        rewards["proxy"] = Scorer("proxy", rewards["proxy"], differentiable=True, at=at)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            try:
                ended = mm.online(
                    policy, asked, rewards, method, combine=combine, batch=node["batch"], steps=10**6,
                    optimizer=mm.adamw(rate=float(node["optimizer"]["rate"]), warmup=2), references=node.get("references"),
                    evaluation=mm.Evaluation(every=10**6, prompts=list(asked)[:1], samples=1, columns=1, call={"num_inference_steps": 1}),
                    run=mm.RunSettings(name="league", folder=folder, seed=seed, checkpoint_every=10**6, trackers=(), dead_steps=None),
                )  # fmt: skip
            except Enough:
                return watching
    if ended.summary["status"] == "interrupted":
        sys.exit("interrupted; started again, the league goes on with the run that it was in")
    raise UserError(f"the run ended by itself after {ended.summary['steps']} steps: {ended.summary['status']}")


def group_of(method: Method) -> int:
    """Rows of a prompt in a step."""
    return 8 if method.reward_gradient is None else 2


def marks_of(world: World, node: Mapping[str, Any], *, budget: int, seed: int) -> list[dict[str, float]]:
    """What a run was worth on its way to its budget, or, beyond that of the world, to the target."""
    limits: dict[str, Any] = {"at": world.marks, "full": world.budget, "budget": budget, "target": world.target}
    return run(world, node, lambda meter, policy: Watch(meter, Exam(world, policy), **limits), seed=seed).marks


def bytes_per_row(world: World, node: Mapping[str, Any]) -> float:
    """What a row more costs at the peak of a step: of a step of twice as many prompts, less one of these, by its rows."""
    one, two = (
        run(world, {**node, "batch": {**node["batch"], "prompts": prompts}}, lambda meter, policy: Scales(), seed=0).peak()
        for prompts in (4, 8)
    )
    return (two - one) / (4 * node["batch"]["group"])


# The plan


class Job(NamedTuple):
    """A run that is to be made. kind: base, trial, memory or seed. number: of the trial, or the seed."""

    world: str
    name: str
    kind: str
    number: int = 0


def lines(path: Path) -> list[dict[str, Any]]:
    """What is there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def done(there: Sequence[Mapping[str, Any]]) -> dict[Job, Mapping[str, Any]]:
    return {Job(line["world"], line["name"], line["kind"], line["number"]): line for line in there}


def worth(line: Mapping[str, Any], base: float, upto: int) -> float:
    """Of a trial: its mean gold at ``MARKS``, as many early as late ones, on lines between the marks it has; it begins at the base's."""
    if "marks" not in line:
        return -1.0
    rows, golds = ([0.0, *(mark["rows"] for mark in line["marks"])], [base, *(mark["gold"] for mark in line["marks"])])
    return float(np.interp([mark for mark in MARKS if mark <= upto], rows, golds).mean())


def chosen(world: str, name: str, there: Mapping[Job, Mapping[str, Any]]) -> list[str] | None:
    """The changes of the best trial; None where all have failed."""
    tried = [line for job, line in there.items() if (job.world, job.name, job.kind) == (world, name, "trial")]
    base, upto = there[Job(world, PUBLISHED, "base")]["gold"], WORLDS[world].budget // 3
    best = max(tried, key=lambda line: worth(line, base, upto))
    return None if "failed" in best else list(best["changes"])


def following(world: str, name: str, there: Mapping[Job, Mapping[str, Any]], *, seeds: int, count: int) -> Job | None:
    """What an entry lacks, one by one. count: of its trials."""
    for number in range(count):
        if (job := Job(world, name, "trial", number)) not in there:
            return job
    if chosen(world, name, there) is None:
        return None
    ended = [there[job]["marks"][-1]["gold"] for n in range(seeds) if "marks" in there.get(job := Job(world, name, "seed", n), {})]
    apart = len(ended) >= SEEDS and max(ended) - min(ended) > DISAGREE
    jobs = [Job(world, name, "seed", n) for n in range(seeds + (WORLDS[world].more if apart else 0))]
    return next((job for job in [*jobs, Job(world, name, "memory")] if job not in there), None)


def carried_out(job: Job, entry: Entry, there: Mapping[Job, Mapping[str, Any]]) -> dict[str, Any]:
    """The line of a job."""
    world, line = WORLDS[job.world], {**job._asdict()}
    if job.kind == "base":
        policy = build_part(node_of(world, entry), "policy")
        return {**line, **Exam(world, policy)(4)}
    changes = trials(world, job.name, entry)[job.number] if job.kind == "trial" else tuple(chosen(job.world, job.name, there) or ())
    line["changes"], node = list(changes), node_of(world, entry, changes)
    try:
        if job.kind == "memory":
            return {**line, "bytes": bytes_per_row(world, node)}
        if job.kind == "trial":
            return {**line, "marks": marks_of(world, node, budget=world.budget // 3, seed=TRIAL_SEED)}
        return {**line, "marks": marks_of(world, node, budget=world.long if job.name == PUBLISHED else world.budget, seed=job.number)}
    except UserError as error:
        return {**line, "failed": " ".join(str(error).split())}


def played(world: str, names: Sequence[str], results: Path, *, seeds: int, seconds: float) -> None:
    """Carries out what is missing, and adds each line to ``results`` as soon as it is there. seconds: after which no job begins."""
    began, there, everybody = time.monotonic(), done(lines(results)), entries()
    counts = {name: len(trials(WORLDS[world], name, everybody[name])) for name in names}
    results.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=sum(counts.values()) + len(names) * (seeds + 1), desc=world, file=sys.stderr)
    bar.update(sum(job.world == world and job.name in names for job in there))
    for name in names:
        while (job := _next(world, name, there, seeds=seeds, count=counts[name])) is not None and time.monotonic() - began < seconds:
            bar.set_postfix_str(f"{name} {job.kind} {job.number}")
            there[job] = carried_out(job, everybody[PUBLISHED if job.kind == "base" else name], there)
            with results.open("a", encoding="utf-8") as out:
                out.write(json.dumps(there[job]) + "\n")
            bar.update()
    bar.close()


def _next(world: str, name: str, there: Mapping[Job, Mapping[str, Any]], *, seeds: int, count: int) -> Job | None:
    base = Job(world, PUBLISHED, "base")
    return base if base not in there else following(world, name, there, seeds=seeds, count=count)


def tried(world: World, name: str, changes: Sequence[str], *, seeds: int) -> None:
    """Prints what a method comes to with these changes, a line a seed; it becomes no part of the league."""
    node = node_of(world, entries()[name], changes)
    for seed in range(seeds):
        marks = marks_of(world, node, budget=world.budget, seed=seed)
        there = next((str(mark["rows"]) for mark in marks if mark["gold"] >= world.target), "never")
        best, last = max(mark["gold"] for mark in marks), marks[-1]
        print(f"{name} {' '.join(changes)} seed {seed}: gold {world.target} seen at {there} rows, best {best:.3f}, at {last['rows']} rows: "
              + " ".join(f"{key} {value:.3f}" for key, value in last.items() if key != "rows"), flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(WORLDS), default="digits")
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=Path("runs") / "league.jsonl")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--changes", nargs="+", metavar="KEY=VALUE", help="runs those of --only with these settings, prints, keeps no line")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    everybody = entries()
    if strange := [name for name in given.only or () if name not in everybody]:
        parser.error(f"--only: got {strange[0]!r}, takes {', '.join(everybody)}")
    if given.changes and not given.only:
        parser.error("--changes: takes --only, the methods that are tried with them")
    if given.changes:
        for name in given.only:
            tried(WORLDS[given.world], name, given.changes, seeds=given.seeds)
    elif given.page:
        kinds = {name: family(entry) for name, entry in everybody.items()}
        write(FOLDER, WORLDS, lines(given.results), published=PUBLISHED, kinds=kinds)
    else:
        played(given.world, given.only or list(everybody), given.results, seeds=given.seeds, seconds=given.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
