"""Every type that crosses a wall between two folders. Imports torch only, and how its tables are put beside each other.

Letters in shapes: B rows of a batch, T steps of a row, N pairs, G rows of a group.

Conventions, held everywhere:

- Log-probabilities are sums over the event, in nats, in float64: a token's log-probability, or the log-density of a whole
  latent. Public code for diffusion averages over the latent's D numbers instead; that convention is the explicit ratio
  ``objectives.ratios.per_scalar``, which divides by ``Steps.event_size``.
- A missing number is NaN, never 0.
- Losses come out unreduced; ``Method.weigh`` says what each cell counts for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from mmalign.stacking import entries_by_name, numbered, pooled, stacked, stacked_by_name

Kind = Literal["token", "transition", "bound", "score"]
Unit = Literal["cell", "row", "pair", "group", "batch"]


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, what was got and what is accepted (exit code 2)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _table(owner: str, name: str, value: Tensor, shape: Sequence[int]) -> None:
    _require(isinstance(value, Tensor), f"{owner}.{name}: got {type(value).__name__}, takes a tensor of shape {list(shape)}")
    _require(tuple(value.shape) == tuple(shape), f"{owner}.{name}: got shape {list(value.shape)}, takes {list(shape)}")


class Level(NamedTuple):
    """A noise level of a Gaussian path ``x_t = signal * x_0 + noise * eps``: the time of every kernel.

    Rectified flow at sigma: ``(1 - sigma, sigma)``. Variance preserving: ``(sqrt(abar), sqrt(1 - abar))``. Variance
    exploding: ``(1, sigma)``. Both entries are tensors that broadcast against ``x``.
    """

    signal: Tensor
    noise: Tensor


class Prediction(NamedTuple):
    """What a denoiser says about ``x_t``, in the one form that every parametrisation (epsilon, v, sample, flow) turns into.

    ``clean`` estimates ``x_0`` and ``noise`` estimates ``eps``; ``x_t = level.signal * clean + level.noise * noise`` holds.
    Both have the shape of ``x_t``.
    """

    clean: Tensor
    noise: Tensor


class Kernel(Protocol):
    """One denoising step as a Gaussian: ``x_next ~ N(mean, std^2 I)``.

    ``mean`` has the shape of ``x``; ``std`` broadcasts against it and is 0 where the step is deterministic.
    """

    def __call__(self, prediction: Prediction, x: Tensor, t: Level, t_next: Level) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, order=True)
class Need:
    """A table of steps that a method asks for. ``mmalign.needs`` has one of each to write methods with.

    kind: ``old``; ``refs``, ``kls``, ``reverse_kls``, ``rank``, ``absolute``, ``score`` of a reference; ``contrast``; of facts and terms
        the names (``std``, ``slope``, ``dt``, ``noise``, ``changed``, ``phrase``, ``segment``, ``entropy``, ``collision``,
        ``topk_entropy``, ``topk_mass``, ``value``, ``reward_mask``, ``kl_mask``, ``activation``, ``degree``, ``drift``, ``adjoint``,
        ``adjoint_size``, ``realism``, ``realism_of_given``).
    name: of the reference or of the contrast; empty where there is one such table, or where all that a rollout remembers are meant.
    share: of the current prediction in the mixture with the reference's that an ``absolute`` error is of.
    """

    kind: str
    name: str = ""
    share: float = 0.0

    def __str__(self) -> str:
        named = f"{self.kind}:{self.name}" if self.name else self.kind
        return f"{named}:{self.share:g}" if self.share else named


@dataclass(frozen=True)
class Steps:
    """The table of decisions of some rows, as the current parameters see it: the one currency of objectives.

    log_probs: ``[B, T]`` float64, nats, summed over the event, differentiable. Cells outside ``mask`` hold 0.
    mask: ``[B, T]`` bool, the cells that count.
    old: ``[B, T]`` log-probabilities at sampling time, or None.
    refs: name -> ``[B, T]`` log-probabilities under a named reference (``ref``, ``previous``, ``ema``, an opponent).
    kls: name -> ``[B, T]`` exact KL of each step's distribution to the named reference's, nats, differentiable. Of a bound half of the
        squared distance of the two predictions: the KL of Gaussians of variance 1 around them, as the bound is such a one's log-density.
    facts: name -> ``[B, T]`` whatever else a policy knows of a step, without gradient: ``std`` (of the transition, in
        units of the latent), ``slope`` (how far its mean moves as the velocity ``eps - x_0`` does, absolute), ``dt`` (length of the step in
        the path's own time), ``noise`` (the noise level of a bound); of tokens ``changed`` (1 where the other row of the pair reads
        differently; of a pair with marks 1 where they say that a word is wrong, -1 there in its better row), ``phrase`` and ``segment``
        (numbers from 1, 0 for none); of bounds ``absolute:NAME:SHARE``, the mean over the event of
        the absolute error of the mixture ``share * prediction + (1 - share) * the named reference's``; of tokens ``rank:NAME``, the rank
        that the likeliest token has under the named reference.
    event_size: scalars in one event: 1 for a token, D for a latent of D numbers.
    kind: ``token``, ``transition`` (a density), ``bound`` (minus half a squared error: not a density) or ``score`` (what a reward model
        says of the row, in each of its dimensions: no probability at all; the name ``log_probs`` is the other kinds').
    reverse_kls: name -> ``[B, T]`` the KL of the named reference's distribution to each step's, nats, differentiable.
    terms: name -> ``[B, T]`` further numbers of a step, differentiable: ``entropy`` (nats) and ``collision`` (log of the sum of
        squared probabilities) of its distribution, ``topk_entropy`` (``-sum p log p``) and ``topk_mass`` (``sum p``) of its 10 likeliest
        outcomes, ``value`` (what a critic expects), ``reward_mask``, ``kl_mask``, ``activation`` (mean of what the reference's layers hold
        before the step, without gradient), ``degree``, ``dead_end`` and
        ``dead_end_best`` (minus how surely a bad end follows the step, and the best in this of some steps that ``start`` would take),
        ``drift`` (exact KL of the distribution that the step was sampled from to its present one, nats), and ``adjoint`` (by how much
        the reward would grow, to first order, as the outcome of the step moves from what was recorded), and of bounds ``realism`` and
        ``realism_of_given`` (logits of a classifier: that the noised sample is given data, and of what is given beside it).
    contrasts: name -> the same rows and steps under another condition, with references of its own: ``ablated`` (what the prompt
        shows taken away), ``good`` and ``bad`` (asked to answer well, or badly), ``mismatched`` (another row's prompt), ``true`` (what the
        prompt itself shows at each step, in place of what was drawn).
    """

    log_probs: Tensor
    mask: Tensor
    old: Tensor | None = None
    refs: Mapping[str, Tensor] = field(default_factory=dict)
    kls: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    event_size: int = 1
    kind: Kind = "token"
    reverse_kls: Mapping[str, Tensor] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    contrasts: Mapping[str, Steps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(isinstance(self.log_probs, Tensor) and self.log_probs.ndim == 2, "Steps.log_probs: takes a tensor [batch, steps]")
        shape = self.log_probs.shape
        _require(self.log_probs.dtype == torch.float64, f"Steps.log_probs: got {self.log_probs.dtype}, takes torch.float64")
        _table("Steps", "mask", self.mask, shape)
        _require(self.mask.dtype == torch.bool, f"Steps.mask: got {self.mask.dtype}, takes torch.bool")
        if self.old is not None:
            _table("Steps", "old", self.old, shape)
        for group in TABLES:
            for name, value in getattr(self, group).items():
                _table("Steps", f"{group}[{name!r}]", value, shape)
        for name, steps in self.contrasts.items():
            _table("Steps", f"contrasts[{name!r}]", steps.log_probs, shape)
        _require(self.event_size >= 1, f"Steps.event_size: got {self.event_size}, takes 1 or more")
        _require(self.kind in get_args(Kind), f"Steps.kind: got {self.kind!r}, takes {', '.join(get_args(Kind))}")

    def __len__(self) -> int:
        return self.log_probs.shape[0]

    def __getitem__(self, rows: Any) -> Steps:
        """The same table for some rows: a slice, a list of row numbers or a boolean tensor."""
        return self.each(lambda values: values[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """The same table with every ``[B, T]`` in it changed: rows or columns picked, detached, padded."""
        tables: dict[str, Any] = {group: {name: change(value) for name, value in getattr(self, group).items()} for group in TABLES}
        contrasts = {name: steps.each(change) for name, steps in self.contrasts.items()}
        old = None if self.old is None else change(self.old)
        return replace(self, log_probs=change(self.log_probs), mask=change(self.mask), old=old, contrasts=contrasts, **tables)


TABLES = ("refs", "kls", "facts", "reverse_kls", "terms")  # the fields of Steps that are named tables


class Behavior(NamedTuple):
    """Who else draws rows of a group, beside the current policy: another set of parameters, or a mixture of several.

    name: what its rows are called in ``drawn``. shares: set of parameters (``current``, ``ref``, ...) -> its exponent in the geometric
    mixture ``prod_k pi_k^share_k``, normalised at each step; they add up to 1. part: of a group's rows that it draws; 0: one row more.
    greedy: every step takes its likeliest outcome, or the ODE's; such a row holds no random decision, and has no live step.
    """

    name: str
    shares: Mapping[str, float]
    part: float = 0.5
    greedy: bool = False


class Move(NamedTuple):
    """A set of parameters that becomes a mixture of sets before some of the steps.

    name: of the set; ``current``: the trained parameters. shares: set -> share; they add up to 1, and one below 0 extrapolates. A set
    that is not there yet is a copy of the current parameters. every, at: before the steps with ``step % every == at``.
    moments: the optimiser's state goes along: it is kept with a copy of ``current``, and put back where ``current`` becomes that copy.
    decay: step -> share of the set itself in its moving average, the rest is the current one's, every parameter by itself (of LoRA A and
    B each, as an EMA has them), in place of ``shares``, which then only name the sets that are read.
    """

    name: str
    shares: Mapping[str, float]
    every: int = 1
    at: int = 0
    moments: bool = False
    decay: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Feedback:
    """What people, rewards and judges said of a rollout's rows. Pairs, lists, groups and thumbs are indices into rows.

    rewards: ``[B]`` float64, the scalar that a method maximises; NaN is missing.
    group: ``[B]`` int64, rows with one number share a prompt.
    parts: name -> ``[B]`` every reward by itself, for logs and for methods that use them apart.
    labels: ``[B]`` in 0..1, thumbs up or down, or a soft label.
    pairs: ``[N, 2]`` row numbers (chosen, rejected).
    strength: ``[N]`` in 0..1, the probability that the first of a pair is the better one.
    lengths: ``[B]`` number of steps of each row, where a method shapes rewards by length.
    wins: ``[B, B]`` in 0..1, the probability that a row is better than another one, NaN where nobody compared them.
    ids, annotators: B strings, of the record that a row comes from and of who judged it, where there are records; '' is not known.
    tables: need -> ``[B, T]`` without gradient, what a method ``reads`` of the rollout's steps: ``mask`` (bool), ``old``, ``refs:NAME``,
        ``value``, ``segment``, ``std``, ``slope``, ``adjoint_size`` (the norm of a reward's gradient by a step's outcome), and ``rewards``
        (of single steps).
    drawn: name of a behavior -> ``[B]`` bool, the rows that it drew instead of the current policy.
    branch: ``[B]`` int64, rows with one number began at one state, inside a group (``samplers.branches``); None: every row by itself.
    ratings, strengths: ``[B, T]`` of rows and ``[N, T]`` in 0..1 of pairs, what people said in each of a reward model's T scores; NaN where
        nobody said anything. None: one label for all.
    prompts: B strings, what the prompts of rows are told apart by from rollout to rollout, where the rows are a rollout's.
    """

    rewards: Tensor
    group: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    pairs: Tensor | None = None
    strength: Tensor | None = None
    lengths: Tensor | None = None
    wins: Tensor | None = None
    tables: Mapping[Need, Tensor] = field(default_factory=dict)
    ids: Sequence[str] | None = None
    annotators: Sequence[str] | None = None
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    branch: Tensor | None = None
    ratings: Tensor | None = None
    strengths: Tensor | None = None
    prompts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _require(isinstance(self.rewards, Tensor) and self.rewards.ndim == 1, "Feedback.rewards: takes a tensor [batch]")
        rows = self.rewards.shape
        _require(self.rewards.dtype == torch.float64, f"Feedback.rewards: got {self.rewards.dtype}, takes torch.float64")
        _table("Feedback", "group", self.group, rows)
        _require(self.group.dtype == torch.int64, f"Feedback.group: got {self.group.dtype}, takes torch.int64")
        for field_name, values in (("parts", self.parts), ("drawn", self.drawn)):
            for name, value in values.items():
                _table("Feedback", f"{field_name}[{name!r}]", value, rows)
        for name, shape in (("labels", rows), ("wins", (*rows, *rows))):
            if (value := getattr(self, name)) is not None:
                _table("Feedback", name, value, shape)
                _require(not bool(((value < 0) | (value > 1)).any()), f"Feedback.{name}: got values outside 0..1")
        for need, value in self.tables.items():
            _require(value.shape[:-1] == rows, f"Feedback.tables[{need}]: got {list(value.shape)}, takes [{rows[0]}, steps]")
        for name in ("lengths", "branch"):
            if getattr(self, name) is not None:
                _table("Feedback", name, getattr(self, name), rows)
        if self.pairs is not None:
            _require(self.pairs.shape[1:] == (2,), f"Feedback.pairs: got shape {list(self.pairs.shape)}, takes [pairs, 2]")
            _require(bool(((self.pairs >= 0) & (self.pairs < rows[0])).all()), f"Feedback.pairs: got row numbers outside 0..{rows[0] - 1}")
        if self.strength is not None:
            _require(self.pairs is not None, "Feedback.strength: given without pairs")
            _table("Feedback", "strength", self.strength, self.pairs.shape[:1])  # type: ignore[union-attr]
            _require(not bool(((self.strength < 0) | (self.strength > 1)).any()), "Feedback.strength: got values outside 0..1")
        for name, count in (("ratings", rows[0]), ("strengths", 0 if self.pairs is None else len(self.pairs))):
            if (value := getattr(self, name)) is not None:
                _table("Feedback", name, value, (count, *value.shape[1:2]))
                _require(name == "ratings" or not bool(((value < 0) | (value > 1)).any()), f"Feedback.{name}: got values outside 0..1")


class _Filled(type):
    """A class that users fill in by hand, so that a wrong or a missing keyword is one line."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError as error:
            takes = ", ".join(entry.name for entry in fields(cls))  # type: ignore[arg-type]
            raise UserError(f"{cls.__name__}: {str(error).removeprefix(f'{cls.__name__}.__init__() ')}; takes {takes}") from error


@dataclass(frozen=True)
class Prompt(metaclass=_Filled):
    """What a model is asked, and what is known beside it.

    content: a string, or a conversation. columns: name -> whatever a reward, a judge or an oracle reads of this prompt: its answer, its
    tests, a picture's path. Errors: UserError for a column that is called like a reward's own arguments.
    """

    content: Any
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if odd := sorted(self.columns.keys() & {"outputs", "prompts", "group"}):
            raise UserError(f"prompts: got a column {odd[0]!r}, which is what a reward's own argument is called; takes another name")


def contents(prompts: Sequence[Any]) -> list[Any]:
    """What is asked, of prompts with columns and of plain ones."""
    return [prompt.content if isinstance(prompt, Prompt) else prompt for prompt in prompts]


def columns_of(prompts: Sequence[Any]) -> dict[str, list[Any]]:
    """name -> an entry for each prompt, None where it has no such column.

    Examples:
        >>> columns_of([Prompt("1 + 1 =", {"answer": "2"}), "a fox"])
        {'answer': ['2', None]}
    """
    mappings = [prompt.columns if isinstance(prompt, Prompt) else {} for prompt in prompts]
    return {name: [columns.get(name) for columns in mappings] for name in dict.fromkeys(name for columns in mappings for name in columns)}


class Held(Protocol):
    """What an adapter keeps of a rollout's rows to score them again: a record of its own, see there for its fields.

    Whatever the numbers of a row depend on goes along with it, so that rows that are taken out of a rollout, or put beside those of
    another one of the same policy, score as before.
    """

    def take(self, rows: Tensor) -> Held:
        """Some rows, by their numbers ``[R]``."""

    @staticmethod
    def join(parts: Sequence[Any]) -> Held:
        """Records of one adapter as one, rows of the first part first."""


@dataclass
class Rollout:
    """Rows that a policy generated, or was given, with all that is needed to score them again.

    prompts: B strings, or conversations. outputs: what rewards see (B images as float tensors in 0..1 ``[B, C, H, W]``, videos
    ``[B, F, C, H, W]``, or B strings). log_probs, mask: ``[B, T]`` at sampling time (float64, bool). group: ``[B]`` int64.
    held: the adapter's own record, a ``Held``, or None where it keeps nothing; recipes never look inside. metrics: numbers of the
    rollout for the log. drawn: name of a behavior -> ``[B]`` bool, the rows that it drew; ``log_probs`` are the current policy's of these
    rows too. columns: name -> an entry for each row, what is known beside its prompt (``Prompt.columns``).
    spans: ``() ->`` for each row, of each of its steps the characters ``(start, end)`` of its output that it wrote; None: no text.
    branch: as of ``Feedback``. facts: name -> ``[B, T]`` float64, facts of its steps that are known without scoring them again.
    """

    prompts: list[Any]
    outputs: Any
    log_probs: Tensor
    mask: Tensor
    group: Tensor
    held: Any = None
    metrics: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    spans: Callable[[], list[list[tuple[int, int]]]] | None = None
    branch: Tensor | None = None
    facts: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.prompts)
        _require(self.log_probs.ndim == 2, "Rollout.log_probs: takes a tensor [batch, steps]")
        _table("Rollout", "log_probs", self.log_probs, (rows, self.log_probs.shape[1]))
        _table("Rollout", "mask", self.mask, self.log_probs.shape)
        _table("Rollout", "group", self.group, (rows,))
        _require(len(self.outputs) == rows, f"Rollout.outputs: got {len(self.outputs)}, takes one for each of {rows} prompts")

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor) -> Rollout:
        """Some rows, by their numbers ``[R]`` int64, as a rollout of their own that scores as before.

        Groups keep their numbers, ``metrics`` stay those of the whole, and references that were remembered stay so.
        """
        places, spans = rows.tolist(), self.spans
        return replace(
            self,
            prompts=[self.prompts[place] for place in places],
            outputs=self.outputs[rows] if isinstance(self.outputs, Tensor) else [self.outputs[place] for place in places],
            log_probs=self.log_probs[rows],
            mask=self.mask[rows],
            group=self.group[rows],
            held=None if self.held is None else self.held.take(rows),
            drawn={name: theirs[rows] for name, theirs in self.drawn.items()},
            columns={name: [column[place] for place in places] for name, column in self.columns.items()},
            spans=None if spans is None else lambda: [of_rows[place] for of_rows in [spans()] for place in places],
            branch=None if self.branch is None else self.branch[rows],
            facts={name: table[rows] for name, table in self.facts.items()},
        )

    @staticmethod
    def join(parts: Sequence[Rollout]) -> Rollout:
        """Rollouts of one policy as one, rows of the first part first; narrower tables are filled up with steps that do not count.

        Groups and branches are renumbered, so that none reaches over two parts: whoever splits a rollout splits between groups. ``metrics``
        are means over rows (``*_max``: the largest) of what every part measured, and references those that every part remembers.
        Errors: UserError for no part, and for outputs of different kinds or sizes.
        """
        _require(len(parts) > 0, "Rollout.join: got no part, takes one or more")
        outputs = [part.outputs for part in parts]
        sizes = {tuple(output.shape[1:]) if isinstance(output, Tensor) else None for output in outputs}
        _require(len(sizes) == 1, f"Rollout.join: got outputs of sizes {', '.join(map(str, sizes))}, takes one size (None: no tensor)")
        counts = [len(part) for part in parts]
        drawn = entries_by_name([{name: rows.tolist() for name, rows in part.drawn.items()} for part in parts], counts, False)
        spans = [part.spans for part in parts if part.spans is not None]
        return Rollout(
            prompts=[prompt for part in parts for prompt in part.prompts],
            outputs=torch.cat(outputs) if isinstance(outputs[0], Tensor) else [output for some in outputs for output in some],
            log_probs=stacked([part.log_probs for part in parts]),
            mask=stacked([part.mask for part in parts]),
            group=numbered([part.group for part in parts]),  # type: ignore[arg-type]
            held=None if parts[0].held is None else parts[0].held.join([part.held for part in parts]),
            metrics=pooled([part.metrics for part in parts], counts),
            drawn={name: torch.tensor(rows, dtype=torch.bool) for name, rows in drawn.items()},
            columns=entries_by_name([part.columns for part in parts], counts, None),
            spans=(lambda: [row for some in spans for row in some()]) if len(spans) == len(parts) else None,
            branch=numbered([part.branch for part in parts]),
            facts=stacked_by_name([part.facts for part in parts]),
        )


class Loss(NamedTuple):
    """``values``: unreduced, ``[B, T]`` or ``[B, 1]``, differentiable. ``metrics``: name -> 0-d tensor, without gradient.

    ``over``: 0-d, how many things the metrics are means over, so that those of micro-batches can be put together; None: live cells.
    ``compared``: ``[M, 2]`` of what compares two rows: by how much one is ahead (``logit`` of ``Method.wins``, where there is that), and
        how probably it is the better one.
    """

    values: Tensor
    metrics: dict[str, Tensor]
    over: Tensor | None = None
    compared: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """A published method as a sentence of parts. Recipes ask it what it needs; they never ask its name.

    signal: Feedback of the whole rollout -> ``[B, 1]`` or ``[B, T]``, no gradient (advantages, labels, ...); where a row or a step has
        several numbers, ``[B, 1 or T, S]``. 0 for rows that nothing is known of.
    loss: Steps of a micro-batch and its rows of the signal -> Loss.
    weigh: mask of the whole rollout ``[B, T]`` -> weights ``[B, T]``; the loss is ``sum(weight * values)``, so that it does
        not depend on the micro-batch split, on accumulation or on the number of processes.
    needs: what Steps must hold.
    unit: what has to stay in one micro-batch. ``batch``: all rows of an update.
    kinds: the kinds of Steps that it accepts; a bound is no density, and has no importance ratio.
    keep: Feedback -> ``[B]`` bool, rows worth an update (dynamic sampling); None keeps all.
    state: explicit state that is checkpointed (``dump() -> JSON``, ``load(JSON)``). reads: what ``signal`` wants in ``Feedback.tables``.
    survey: for statistics of a whole update under the current parameters (KTO's KL, AOT's ranks): before its micro-batches, the
        table of all its rows, without gradient and holding ``survey_needs`` too, and their signal -> a signal with what was found.
    behaviors: who else draws rows. moves: how sets of parameters follow the trained ones, in this order.
    pairs: how pairs are made of a rollout without any (``Feedback.pairs``); None: the best and the worst row of each group.
    sampled_by: the set of parameters that draws the rows: ``current``, or one that ``moves`` makes. unguided: whether rows of a bound have
        to be samples of what is predicted, without guidance.
    reward_gradient: how the gradient of rewards becomes the term ``adjoint`` (``samplers.adjoints.RewardGradient``), for methods that need
        it; their steps need not be random. None for all others.
    companions: sets of the policy's parameters that are trained beside it (``samplers.score_differences.Companion``).
    by_step: whether what is made of a step depends on no other step, so that a unit of whole rows may be seen one step at a time.
    numbers: of a reward model's scores, how many say one dimension, the first of them how good a row is in it; 0: none is one by itself,
        and rows are only compared. wins: scores ``[N, T]`` of rows and of others -> how probably each is better, ``[N, dimensions]``; None
        of methods that compare nothing. scores: names of all of them, where records label each by itself; a recipe says them.
    climb: what is climbed before the gradient of an update is taken (``objectives.parts.Climb``); None: nothing.
    replay: what it learns from rows of earlier rollouts besides (``objectives.parts.Replay``); None: nothing.
    masking: what its rows may hold, when they are drawn and whenever they are scored, by the policy and by references
        (``samplers.masking.Masking``); None: anything.
    """

    signal: Callable[[Feedback], Tensor]
    loss: Callable[[Steps, Tensor], Loss]
    weigh: Callable[[Tensor], Tensor]
    needs: frozenset[Need] = frozenset({Need("old")})
    unit: Unit = "cell"
    kinds: frozenset[str] = frozenset({"token", "transition"})
    keep: Callable[[Feedback], Tensor] | None = None
    state: Any = None
    reads: frozenset[Need] = frozenset()
    survey: Callable[[Steps, Tensor], Tensor] | None = None
    survey_needs: frozenset[Need] = frozenset()
    behaviors: tuple[Behavior, ...] = ()
    moves: tuple[Move, ...] = ()
    pairs: Callable[[Feedback], Feedback] | None = None
    sampled_by: str = "current"
    unguided: bool = False
    reward_gradient: Any = None
    companions: tuple[Any, ...] = ()
    by_step: bool = False
    numbers: int = 1
    wins: Callable[[Tensor, Tensor], Tensor] | None = None
    scores: tuple[str, ...] = ()
    climb: Any = None
    masking: Any = None
    replay: Any = None

    def __post_init__(self) -> None:
        for name, need in ((table, one) for table in ("needs", "survey_needs", "reads") for one in getattr(self, table)):
            _require(isinstance(need, Need), f"Method.{name}: got {need!r}, takes records of mmalign.needs")


class Reward(Protocol):
    """``(outputs, prompts, **columns) -> [B]`` or ``{name: [B]}``. A plain callable; NaN says that no score could be had.

    In place of ``[B]`` it may give, for each text, a list of scores of its parts: ``(start, end, score)`` in characters, or None.
    """

    def __call__(self, outputs: Any, prompts: list[str], **columns: Any) -> Tensor | dict[str, Tensor]: ...


class Oracle(Protocol):
    """``(outputs, prompts, group, **columns) -> [B, B]``: how probably a row is better than each other of its group; NaN: not known."""

    def __call__(self, outputs: Any, prompts: Any, group: Tensor, **columns: Any) -> Tensor: ...


class ParameterSets(Protocol):
    """The trained parameters, and named copies of them."""

    def keep(self, name: str) -> None:
        """Makes the named set a copy of the current values."""

    def follow(self, name: str, *, decay: float) -> None:
        """``set <- decay * set + (1 - decay) * current``; made where it is not there yet."""

    def mix(self, name: str, shares: Mapping[str, float]) -> float:
        """Makes a set, or ``current``, the mixture ``sum_k share_k set_k``; returns how far off it is, relative to its size."""

    def tables(self) -> dict[str, dict[str, Tensor]]:
        """``trained`` and every copy, as named tensors."""

    def load(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Puts back what ``tables`` gave."""

    def adopt(self, name: str, *stored: Any, shares: Sequence[float] = (1.0,)) -> None:
        """Makes the named set from weights as files hold them, see ``runs.weights``; of several, sets by their names among them,
        ``sum_k share_k stored_k``."""

    @property
    def foreign(self) -> Mapping[str, str]:
        """The names of what did not start as the trained parameters: of other models (``Policy.refer``) -> what their weights are told
        apart by, of sets that were read from disk -> an empty string."""

    @property
    def scales(self) -> Mapping[str, float]:
        """alpha / rank of every LoRA layer by name, for checkpoints."""


EVERY = slice(None)  # of a list, all of it


class Policy(Protocol):
    """Anything that generates, as a table of decisions. An adapter is a handful of functions.

    It may be ``arguments.facts.Tolerant``, and what ``abilities`` has.
    """

    kind: Kind
    gives: frozenset[str]

    @property
    def sets(self) -> ParameterSets: ...

    def sample(
        self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0, behaviors: Sequence[Behavior] = (),
        part: slice = EVERY,
    ) -> Rollout:  # fmt: skip
        """``group_size`` outputs of each prompt, without gradient; rows of one prompt stand side by side.

        step: number of the training step, for windows that change as training goes. behaviors: who draws rows of each group instead of
        the current policy, whose own stand first, or beside it; a policy that ``gives`` no ``behaviors`` is never asked. part: the prompts
        whose rows are made here, at least one, where other processes make the others: they are the rows that ``take`` would give of all
        (but for rounding), so that a row depends on its place and not on who makes it. A policy that ``gives`` drift takes ``drift=True``:
        keep what that term is measured from. One that ``gives`` masking takes ``masking=``, of ``Method.masking``, and scores these rows
        under it from then on.
        """

    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> Any:
        """Outputs as a user gets them, one seed for each prompt."""

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the policy cannot be asked: too long, a picture that cannot be read. Nothing is sampled for it."""

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Makes a name stand for another model: that of ``other``, a policy of the same kind, which is frozen. examples: some prompts.

        ``using``, ``remember`` and ``steps`` then mean that model by the name. Errors: UserError where it cannot score the same rows.
        """

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
        """Tabulates named references on a rollout once, before its updates."""

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The table of some rows under the current parameters, with gradient. ``columns``: some steps only."""

    def using(self, name: str) -> AbstractContextManager[None]:
        """The named parameter set (``ref``, ``ema``, ``previous``) in place of the current one while the block lasts."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name."""


class Adapter(NamedTuple):
    """What a module of policies says of those that it makes, as ``ADAPTER``, so that a config can be checked before anything is built.

    kind, gives: as of its policies. gives_with: keyword -> what the policy gives besides for each name that is listed under it. call: the
    keywords that ``generate`` takes, from the arguments of the policy's node; None where any may be right. random_steps: (schedule, those
    keywords) -> which of its steps will be random, ``[T]`` bool, as far as these tell; None where they do not. Errors: UserError for a
    schedule that no trajectory fits. learns_from: as of its policies, where that is the same for all of them. sees: from the arguments,
    whether the model reads images in prompts; None where that is not known before it is loaded.
    """

    kind: Kind
    gives: frozenset[str]
    gives_with: Mapping[str, frozenset[str]] = {}
    call: Callable[[Mapping[str, Any]], Iterable[str] | None] = lambda arguments: None
    random_steps: Callable[[Any, Mapping[str, Any]], Tensor | None] = lambda schedule, call: None
    learns_from: str = ""
    sees: Callable[[Mapping[str, Any]], bool | None] = lambda arguments: None


class Encoder(Policy, Protocol):
    """A policy that takes given rows: what offline recipes need."""

    def encode(self, prompts: list[str], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Rows that somebody else made, as a rollout; rows of one ``group`` share what is drawn for them (noise, noise levels).

        part: the rows that are made here, at least one, as in ``sample``: the rows that ``take`` would give of all. Images and videos of
        the others may be ``records.Unread``.
        Errors: records.RefusedRow for the first row that it cannot use.
        """
