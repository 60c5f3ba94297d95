"""Guidance against best-of-N at equal cost: a table, a picture, and whether they beat it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Count, Finite, NotNegative
from mmalign.commands._models import Conditions, arguments_of, guidance_of
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.files import write_bytes
from mmalign.guidance.guide import guide
from mmalign.guidance.ledger import Ledger
from mmalign.guidance.search import best_of
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import refuse_columns
from mmalign.types import UserError, columns_of, contents

Reward = Callable[..., Any]
MOST = 64  # samples of best-of-N that are drawn for each output, whatever a guidance cost


@dataclass(frozen=True)
class ComparedGuidance:
    """One guidance. All numbers are of one output; ``error``: standard errors over seeds.

    cost: evaluations of the denoiser, a backward pass counted as so many. best_reward, best_judge: of best-of-N at that cost, on a
    straight line between whole numbers; NaN beyond the most that was drawn. lead: judge minus that, seed by seed.
    """

    name: str
    cost: float
    ledger: dict[str, float]
    reward: float
    reward_error: float
    judge: float
    judge_error: float
    best_reward: float
    best_judge: float
    lead: float
    lead_error: float

    @property
    def verdict(self) -> str:
        """In a word: beyond two standard errors, or not."""
        if math.isnan(self.lead):
            return "not known"
        if not abs(self.lead) > 2 * self.lead_error:  # nor where the error is not known
            return "no difference"
        return "beats it" if self.lead > 0 else "is below it"


@dataclass(frozen=True)
class Comparison:
    """rows: a guidance each. curve: (cost, reward, judge, error of judge) of best-of-N, N = 1, 2, ...; seeds: of each number."""

    rows: list[ComparedGuidance]
    curve: list[tuple[float, float, float, float]]
    seeds: int
    outputs: int

    def table(self) -> str:
        """As Markdown."""
        lines = [
            f"Mean and standard error over {self.seeds} seeds of {self.outputs} outputs each; cost in evaluations for an output.",
            "",
            "| guidance | cost | evaluations | gradients | decodes | rewards | seconds | reward | judge | best-of-N there | lead | |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            spent = " | ".join(f"{row.ledger[key]:.4g}" for key in ("evaluations", "gradients", "decodes", "rewards", "seconds"))
            scored = f"{row.reward:.3f} ± {row.reward_error:.3f} | {row.judge:.3f} ± {row.judge_error:.3f}"
            lead = f"{row.best_judge:.3f} | {row.lead:+.3f} ± {row.lead_error:.3f} | {row.verdict}"
            lines.append(f"| {row.name} | {row.cost:.4g} | {spent} | {scored} | {lead} |")
        for number, (cost, reward, judge, error) in enumerate(self.curve, 1):
            if number & (number - 1) == 0:
                lines.append(f"| best of {number} | {cost:.4g} | | | | | | {reward:.3f} | {judge:.3f} ± {error:.3f} | | | |")
        return "\n".join(lines) + "\n"


def compare(  # what a command may be told
    pipe: Any, reward: Reward | Mapping[str, Reward], *, guidance: Sequence[str], prompts: Sequence[Any], judge: Reward | None = None,
    weights: Mapping[str, Finite] | None = None, call: Mapping[str, Any] | None = None, conditions: Conditions | None = None,
    samples: Count = 4, seeds: Count = 3, gradient: NotNegative = 2.0, rows_at_once: Count = 64, out: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:  # fmt: skip
    """Compares ways of guidance with each other, with none, and with best-of-N at the same cost.

    Args:
        pipe: a pipeline. reward: what guidance sees, as ``guide`` takes it. judge: what it does not see, ``(outputs, prompts) -> [B]``;
            the reward itself where there is none.
        guidance: names with settings, ``"dps scale=5"``. prompts, call: of the pipeline; prompts may have columns.
        conditions: prompts -> arguments of the call that differ by prompt.
        samples: outputs of each prompt and seed. seeds: how often all of it is done; errors are over these.
        gradient: forward passes that a backward pass through the denoiser counts for; decodes and rewards are in the table, not the cost.
        out: a folder for ``comparison.md``, ``.json`` and ``.png``. say: hears a line of progress.

    Best-of-N is drawn once for all N, as many as the dearest guidance pays for (64 at most); best of n is the mean over blocks of n.
    Of several processes each does some of the draws, a guidance and a seed, and the main one writes. Errors: UserError.
    """
    if samples < 1 or seeds < 2 or not guidance or not prompts:
        got = f"samples {samples}, seeds {seeds}, {len(guidance)} guidances and {len(prompts)} prompts"
        raise UserError(f"compare: got {got}, takes 1, 2, 1 and 1 or more")
    refuse_columns(dict(reward) if isinstance(reward, Mapping) else {"": reward}, columns_of(prompts), kind="reward")
    refuse_columns({} if judge is None else {"": judge}, columns_of(prompts), kind="judge")
    chosen = {words: guidance_of(words) for words in guidance}
    rows = [prompt for prompt in prompts for _ in range(samples)]
    draw = _Drawing(pipe, reward, weights, judge, rows, dict(call or {}), conditions, rows_at_once)
    team = joined()
    with stopping_together(team):
        team_for(len(chosen) * seeds, "guidances times seeds")
        same = {"guidance": list(chosen), "prompts": hashed(prompts), "samples": samples, "seeds": seeds, "rows_at_once": rows_at_once}
        team.agree("compare", same)
        tell = say if team.main else lambda line: None
        guided: dict[str, list[_Drawn]] = {words: [] for words in chosen}
        jobs = [(words, seed) for words in chosen for seed in range(seeds)]
        for (words, _), made in in_turn(team, jobs, lambda job: draw(chosen[job[0]], job[1], 0).dump()):
            guided[words].append(_Drawn.load(made))
            if len(guided[words]) == seeds:
                tell(f"{words}: {sum(one.seconds for one in guided[words]):.1f} s")
        most = max(one.ledger.cost(gradient=gradient) for drawn in guided.values() for one in drawn)
        first = _Drawn.load(team.tell(draw(best_of(count=1), 0, 0).dump() if team.main else None)[0])
        plain = first.ledger.cost(gradient=gradient)
        count = min(MOST, max(2, math.ceil(most / plain)))
        more = [(seed, number) for seed in range(seeds) for number in range(count)]
        drawn = [_Drawn.load(made) for _, made in in_turn(team, more, lambda job: draw(best_of(count=1), *job).dump())]
        pool = [drawn[seed * count : (seed + 1) * count] for seed in range(seeds)]
        tell(f"best of 1 to {count}: {sum(one.seconds for one in drawn):.1f} s")
        comparison = _compared(guided, pool, plain, gradient, len(rows))
        if out is not None and team.main:
            _write(comparison, Path(out))
        return comparison


@dataclass(frozen=True)
class _Drawn:
    """Scores of all rows ``[R]`` by the reward and by the judge, and what they cost."""

    scores: Tensor
    judged: Tensor
    ledger: Ledger

    @property
    def seconds(self) -> float:
        return self.ledger.seconds

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"scores": self.scores.tolist(), "judged": self.judged.tolist(), "ledger": vars(self.ledger)}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> _Drawn:
        """What was dumped."""
        scores, judged = (torch.tensor(dumped[name], dtype=torch.float64) for name in ("scores", "judged"))
        return cls(scores, judged, Ledger(**dumped["ledger"]))


@dataclass(frozen=True)
class _Drawing:
    pipe: Any
    reward: Any
    weights: Mapping[str, float] | None
    judge: Reward | None
    rows: list[Any]
    call: dict[str, Any]
    conditions: Conditions | None
    at_once: int

    def __call__(self, guidance: Any, seed: int, number: int) -> _Drawn:
        scores, judged, ledger = [], [], Ledger()
        for chunk in torch.arange(len(self.rows)).split(self.at_once):
            some = [self.rows[row] for row in chunk.tolist()]
            rng = [torch.Generator(self.pipe._execution_device).manual_seed(_seed(seed, row, number)) for row in chunk.tolist()]
            with guide(self.pipe, self.reward, guidance=guidance, weights=self.weights) as guided:
                arguments = arguments_of(self.pipe, some, self.call, self.conditions)
                outputs = _outputs(self.pipe(**{**arguments, "generator": rng, "output_type": "pt"}))
            total = sum(guided.weights[name] * _scores(one, outputs, some) for name, one in guided.rewards.items())
            scores.append(torch.as_tensor(total))
            judged.append(scores[-1] if self.judge is None else _scores(self.judge, outputs, some))
            for name, value in vars(guided.ledger).items():
                setattr(ledger, name, getattr(ledger, name) + value)
        return _Drawn(torch.cat(scores), torch.cat(judged), ledger)


def _scores(reward: Reward, outputs: Tensor, prompts: list[Any]) -> Tensor:
    """``[n]`` float64, by the columns of the prompts that the reward takes."""
    return torch.as_tensor(reward(outputs, contents(prompts), **accepted(reward, columns_of(prompts)))).detach().double().cpu()


def _seed(seed: int, row: int, number: int) -> int:
    return (seed * 1_000_003 + row) * 1_000_003 + number


def _outputs(result: Any) -> Tensor:
    outputs = next(iter(result.values())) if isinstance(result, Mapping) else result[0]
    return torch.as_tensor(outputs).detach().float()


def _compared(guided: Mapping[str, list[_Drawn]], pool: list[list[_Drawn]], plain: float, gradient: float, outputs: int) -> Comparison:
    curves = [_best_of_each(torch.stack([one.scores for one in drawn]), torch.stack([one.judged for one in drawn])) for drawn in pool]
    rewards, judged = (torch.stack([curve[which] for curve in curves]) for which in (0, 1))  # [seeds, N]
    rows = []
    for name, drawn in guided.items():
        cost = sum(one.ledger.cost(gradient=gradient) for one in drawn) / len(drawn)
        at = cost / plain
        own = torch.stack([one.judged.nanmean() for one in drawn])
        reward = torch.stack([one.scores.nanmean() for one in drawn])
        lead = own - _at(judged, at)
        spent = {key: sum(vars(one.ledger)[key] for one in drawn) / len(drawn) / outputs for key in vars(drawn[0].ledger)}
        numbers = (*_mean(reward), *_mean(own), float(_at(rewards, at).mean()), float(_at(judged, at).mean()), *_mean(lead))
        rows.append(ComparedGuidance(name, cost / outputs, spent, *numbers))
    curve = [
        (plain / outputs * (n + 1), float(rewards[:, n].mean()), float(judged[:, n].mean()), _mean(judged[:, n])[1])
        for n in range(judged.shape[1])
    ]
    return Comparison(rows, curve, len(pool), outputs)


def _best_of_each(scores: Tensor, judged: Tensor) -> tuple[Tensor, Tensor]:
    """Best of n, n = 1 to N, of candidates ``[N, R]``: means ``[N]`` over rows and over blocks of n candidates."""
    known = torch.where(scores.isfinite(), scores, -math.inf)
    best = []
    for n in range(1, len(scores) + 1):
        blocks = [slice(start, start + n) for start in range(0, len(scores) - n + 1, n)]
        picks = [(known[block].argmax(0, keepdim=True), block) for block in blocks]
        best.append([torch.stack([values[block].gather(0, pick).nanmean() for pick, block in picks]).mean() for values in (scores, judged)])
    return torch.stack([one[0] for one in best]), torch.stack([one[1] for one in best])


def _at(curves: Tensor, number: float) -> Tensor:
    """Curves ``[seeds, N]`` at a number of samples between 1 and N, on straight lines; NaN beyond."""
    if number > curves.shape[1] + 1e-9:
        return torch.full((len(curves),), float("nan"), dtype=curves.dtype)
    low = min(max(int(number), 1), curves.shape[1])
    high = min(low + 1, curves.shape[1])
    return torch.lerp(curves[:, low - 1], curves[:, high - 1], max(number - low, 0.0))


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def _write(made: Comparison, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "comparison.md", made.table().encode())
    node = {**asdict(made), "verdicts": {row.name: row.verdict for row in made.rows}}
    write_bytes(folder / "comparison.json", (json.dumps(node, indent=1) + "\n").encode())
    write_bytes(folder / "comparison.png", _picture(made))


def _picture(made: Comparison) -> bytes:
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    cost, _, judged, error = zip(*made.curve, strict=True)
    axes.errorbar(cost, judged, yerr=error, color="0.5", marker=".", label="best of N", zorder=1)
    for row in made.rows:
        axes.errorbar([row.cost], [row.judge], yerr=[row.judge_error], marker="o", capsize=3, linestyle="none", label=row.name)
    axes.set(xlabel="cost of one output, evaluations of the denoiser", ylabel="judge", xscale="log")
    axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
