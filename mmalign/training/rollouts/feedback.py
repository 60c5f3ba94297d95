"""Rewards and judges asked about a rollout, with their answers checked before anything is learned from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.facts import Stateful, Weighted, asks_policy, of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.raised import said
from mmalign.arguments.reads import columns_read, lacks
from mmalign.distributed import tables as of_all
from mmalign.distributed.team import ALONE, Team
from mmalign.needs import REWARDS
from mmalign.records import Choosy
from mmalign.training.rollouts import dense
from mmalign.training.rollouts.dense import Parts
from mmalign.training.settings import Batch, Devices
from mmalign.types import Feedback, Need, Rollout, UserError, columns_of

Functions = Mapping[str, Callable[..., Any]]
Columns = Mapping[str, list[Any]]
Missing = Literal["stop", "drop"]


def ask(
    rewards: Functions, outputs: Any, prompts: list[str], columns: Columns | None = None, *, kind: str = "reward", drop: bool = False,
    latents: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Every reward's answer by name, ``[B]`` float64 on the CPU; NaN where a reward had none.

    A reward that answers ``{part: [B]}`` gives ``name/part`` for each. Errors: UserError that names the reward, where it raises,
    answers with the wrong shape or type, or with an infinite number, which ``drop`` takes for NaN; ``kind`` is what it is called there.
    Scores of parts are summed. latents: what outputs are decoded from, for those that score these.
    """
    return _scores(rewards, outputs, prompts, columns or {}, kind=kind, drop=drop, latents=latents)[0]


def beside(prompts: Sequence[Any], *, rows: int) -> dict[str, list[Any]]:
    """The columns of prompts for the rows of their rollout, as many of each, side by side."""
    each = rows // len(prompts)
    return {name: [value for value in column for _ in range(each)] for name, column in columns_of(prompts).items()}


def refuse_asked(oracle: Callable[..., Any] | None, policy: Any, batch: Batch, devices: Devices) -> None:
    """Errors: UserError for an oracle that asks the policy, where this answers in no words, or is at work elsewhere meanwhile."""
    if not asks_policy(oracle):
        return
    if not (isinstance(policy, Choosy) and policy.learns_from == "texts"):
        raise UserError("oracle: asks the policy for verdicts, and this one answers in no words; takes a language model as the policy")
    busy = {"batch.overlap": batch.overlap > 1, "batch.staleness": batch.staleness > 0}
    if late := [key for key, value in busy.items() if value]:
        raise UserError(f"{late[0]}: the oracle asks the policy, which samples meanwhile; takes {1 if late[0] == 'batch.overlap' else 0}")
    apart = {"place": devices.place != "replicate", devices.together[0]: devices.together[1] > 1}
    if spread := [key for key, value in apart.items() if value]:
        raise UserError(f"devices.{spread[0]}: the oracle asks the policy in each process by itself; takes a policy that is whole in each")


def refuse_columns(functions: Functions, there: Iterable[str], *, kind: str) -> None:
    """Errors: UserError, in one line that names the columns there are, for a function that reads one that the prompts have not.

    A reward of ours says what it ``reads``; of any other function, a keyword without a default is a column.
    """
    columns = list(there)
    for name, function in functions.items():
        if why := lacks(columns_read(function), columns):
            raise UserError(f"{f'{kind} {name}'.strip()}: {why}")


def states_of(combine: Callable[..., Any] | None, rewards: Functions, judges: Functions) -> dict[str, Any]:
    """``combine``, ``rewards.NAME``, ``judges.NAME`` -> what it keeps that belongs into checkpoints, or None."""
    named = {f"{key}.{name}": one for key, some in (("rewards", rewards), ("judges", judges)) for name, one in some.items()}
    return {name: one.state if isinstance(one, Stateful) else None for name, one in {"combine": combine, **named}.items()}


def _scores(
    rewards: Functions, outputs: Any, prompts: list[str], columns: Columns, *, kind: str = "reward", drop: bool = False,
    latents: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Parts]]:  # fmt: skip
    """Every reward's answer ``[B]`` by name, and the scores of parts of those that gave such. drop: infinite ones become NaN."""
    scores, parted = dict[str, Tensor](), dict[str, Parts]()
    for name, reward in rewards.items():
        answer = answer_of(kind, name, reward, scored_by(kind, name, reward, outputs, latents), prompts, columns)
        parts = {f"{name}/{part}": value for part, value in answer.items()} if isinstance(answer, Mapping) else {name: answer}
        parted.update({part: dense.checked(f"{kind} {part}", value, outputs) for part, value in parts.items() if dense.is_parts(value)})
        for part, value in parts.items():
            scores[part] = dense.totals(parted[part]) if part in parted else _checked(f"{kind} {part}", value, len(prompts), drop=drop)
    return scores, parted


def scored_by(kind: str, name: str, reward: Callable[..., Any], outputs: Any, latents: Tensor | None) -> Any:
    """What a reward scores: outputs, or the latents that they are decoded from. Errors: UserError for one of latents that are not there."""
    if not of_latents(reward):
        return outputs
    if latents is None:
        raise UserError(f"{kind} {name}: scores latents, and what it is asked about has none; takes a policy of diffusers, and no guidance")
    return latents


def measure(metrics: Functions, outputs: Any, prompts: list[str], columns: Columns | None = None) -> dict[str, float]:
    """Every metric's numbers by their own names. Errors: UserError that names the metric, where it raises or answers otherwise."""
    numbers: dict[str, float] = {}
    for name, metric in metrics.items():
        answer = answer_of("metric", name, metric, outputs, prompts, columns or {})
        if not isinstance(answer, Mapping):
            raise UserError(f"metric {name}: returned {type(answer).__name__}, takes {{name: number}}")
        for key, value in answer.items():
            try:
                numbers[str(key)] = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"metric {name}: returned {type(value).__name__} for {key}, takes a number") from error
    return numbers


class Scores(NamedTuple):
    """What was said of some rows. named: ``[B]`` by reward. parted: the scores of parts of outputs. wins: ``[B, B]`` of an oracle."""

    rows: int
    named: dict[str, Tensor]
    parted: Mapping[str, Parts] = MappingProxyType({})
    wins: Tensor | None = None

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Of rows of whole groups, those of the first part first; NaN where nothing of that name was said."""
        named = {name: torch.cat([part.named.get(name, part.unknown) for part in parts]) for part in parts for name in part.named}
        names = dict.fromkeys(name for part in parts for name in part.parted)
        parted = {name: [row for part in parts for row in part.parted.get(name, [None] * part.rows)] for name in names}
        wins = [{"wins": part.wins} for part in parts if part.wins is not None]
        return Scores(sum(part.rows for part in parts), named, parted, of_all.blocks(wins, "wins") if wins else None)

    @property
    def unknown(self) -> Tensor:
        """Scores of its rows of which nothing was said."""
        return torch.full((self.rows,), torch.nan, dtype=torch.float64)


def scores_on(
    rewards: Functions,
    rollout: Rollout,
    *,
    oracle: Callable[..., Any] | None = None,
    missing: Missing = "stop",
    policy: Any = None,
) -> Scores:
    """What rewards and an oracle say of a rollout's rows, see ``feedback_on``. policy: whose rollout it is, for rewards of latents, and
    for an oracle that asks it."""
    latents = policy.latents(rollout) if policy is not None and any(map(of_latents, rewards.values())) else None
    named, parted = _scores(rewards, rollout.outputs, rollout.prompts, rollout.columns, drop=missing == "drop", latents=latents)
    return Scores(len(rollout), named, parted, None if oracle is None else _compared(oracle, rollout, policy))


def unasked(rewards: Functions, rollout: Rollout, *, oracle: Callable[..., Any] | None = None, **how: Any) -> Scores:
    """In place of ``scores_on`` in a process whose rows another one asks about, which all of them hear from that one."""
    rows = len(rollout)
    return Scores(rows, {}, wins=None if oracle is None else torch.full((rows, rows), torch.nan, dtype=torch.float64))


def feedback_on(
    rewards: Functions, rollout: Rollout, *, combine: Callable[..., Any] | None = None, oracle: Callable[..., Any] | None = None,
    missing: Missing = "stop",
) -> Feedback:  # fmt: skip
    """Feedback on a rollout: its rewards as one number, and each apart.

    combine: ``(parts {name: [B]}, group [B], prompts, learn=True) -> [B]`` in place of their sum; its state takes the rollout in.

    missing: ``stop`` refuses NaN with UserError; ``drop`` leaves it, and the row without a signal, and takes an infinite score for NaN.
    Scores of parts of an output count by their sum, and stand in ``tables[REWARDS]``, times the ``weights`` of a combination that has
    such, at the steps that wrote those parts. oracle: asked ``(outputs, prompts, group)`` for win probabilities ``[B, B]``.
    """
    return feedback_of(scores_on(rewards, rollout, oracle=oracle, missing=missing), rollout, combine=combine, missing=missing)


def feedback_of(
    scores: Scores, rollout: Rollout, *, combine: Callable[..., Any] | None = None, missing: Missing = "stop",
    group_prompts: Sequence[Any] | None = None, team: Team = ALONE,
) -> Feedback:  # fmt: skip
    """Scores as feedback, see ``feedback_on``; of several processes, on the rows of all of them.

    Each process has asked about its own rows, whole groups; ``combine`` sees those of all. group_prompts: prompts of all processes, by the
    numbers of groups.
    """
    parts, group = of_all.scores(team, scores.named, len(rollout)), team.rows("group", rollout.group)
    for name, value in parts.items():
        if missing == "stop" and bool(value.isnan().any()):
            count = f"{int(value.isnan().sum())} of {len(value)}"
            raise UserError(f"reward {name}: {count} scores are NaN (batch.missing: drop goes on without those rows)")
    total = combined(parts, group, rollout.prompts if group_prompts is None else [group_prompts[row] for row in group.tolist()], combine)
    tables: dict[Need, Tensor] = {}
    if team.any(bool(scores.parted)):
        weights: Mapping[str, float] = combine.weights if isinstance(combine, Weighted) else {}
        tables[REWARDS] = team.rows("rewards", dense.table(scores.parted, weights, rollout))
    wins = None if scores.wins is None else of_all.blocks(team.gather({"wins": scores.wins}), "wins")
    drawn = {name: team.rows(name, rows) for name, rows in rollout.drawn.items()}
    branch = None if rollout.branch is None else team.rows("branch", rollout.branch)
    lengths = team.rows("lengths", rollout.mask.sum(1))
    return Feedback(total, group, parts=parts, lengths=lengths, wins=wins, tables=tables, drawn=drawn, branch=branch)


def combined(parts: Mapping[str, Tensor], group: Tensor, prompts: Sequence[Any], combine: Callable[..., Any] | None) -> Tensor:
    """The rewards of rows as one number each, ``[B]``: what ``combine`` makes of them, whose state takes them in, or their sum."""
    if combine is None:
        return torch.stack(list(parts.values())).sum(0)
    together = lambda outputs, prompts: combine(parts, group, prompts, learn=True)  # noqa: E731
    return _checked("combine", answer_of("combine", "of rewards", together, None, list(prompts), {}), len(group))


def _compared(oracle: Callable[..., Any], rollout: Rollout, policy: Any) -> Tensor:
    """The oracle's win probabilities ``[B, B]`` float64; NaN across groups and on the diagonal, whatever it said there."""
    columns = {**accepted(oracle, rollout.columns), **({"policy": policy} if asks_policy(oracle) else {})}
    compare = lambda outputs, prompts: oracle(outputs, prompts, rollout.group, **columns)  # noqa: E731
    wins, rows = torch.as_tensor(answer_of("oracle", "of pairs", compare, rollout.outputs, rollout.prompts, {})), len(rollout.prompts)
    if tuple(wins.shape) != (rows, rows):
        raise UserError(f"oracle: returned shape {list(wins.shape)}, takes [{rows}, {rows}]: a probability for each two outputs")
    same = rollout.group[:, None] == rollout.group[None, :]
    same.fill_diagonal_(False)
    return torch.where(same, wins.detach().double().cpu(), float("nan"))


def answer_of(
    kind: str, name: str, function: Callable[..., Any], outputs: Any, prompts: list[str], columns: Columns, *, graph: bool = False
) -> Any:
    """What a function of the user's says of some rows; graph: whether with that of the outputs. Errors: UserError that names it, where it
    raises."""
    try:
        with torch.set_grad_enabled(graph):
            return function(outputs, prompts, **accepted(function, columns))
    except UserError as error:
        raise UserError(f"{kind} {name}: {error}") from error
    except Exception as error:  # somebody else's code: whatever it raises, the user has to know whose it was
        raise UserError(f"{kind} {name}: {said(error)}") from error


def _checked(who: str, value: Any, rows: int, *, drop: bool = False) -> Tensor:
    if not isinstance(value, Tensor):
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
            raise UserError(f"{who}: returned a tuple of scores and a dict, as flow_grpo's rewards do; takes the scores alone")
        if isinstance(value, (list, tuple)):  # None is how other trainers' rewards say that there is no score
            value = [float("nan") if one is None else one for one in value]
            if odd := [one for one in value if isinstance(one, (str, bytes, Mapping))]:
                raise UserError(f"{who}: returned {odd[0]!r} as a score, takes numbers, and NaN or None for a missing one")
        try:
            value = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{who}: returned {type(value).__name__}, takes a tensor [{rows}]") from error
    if tuple(value.shape) != (rows,):
        raise UserError(f"{who}: returned shape {list(value.shape)}, takes [{rows}]: one score for each output")
    value = value.detach().double().cpu()
    if drop:
        return value.masked_fill(value.isinf(), torch.nan)
    if bool(value.isinf().any()):
        raise UserError(f"{who}: returned an infinite score; takes finite numbers, and NaN for a missing one")
    return value
