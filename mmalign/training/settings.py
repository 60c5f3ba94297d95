"""The settings of a recipe as records: what YAML says in mappings and Python in these classes or in mappings, checked to the last leaf.

Every record is frozen, checks its numbers when it is made, and is part of a run's ``config.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mmalign.arguments.ranges import Count, Natural, Positive, Seed, Steps, within
from mmalign.arguments.signatures import Record
from mmalign.types import Method, Policy, UserError

Tracker = Literal["tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab"]
"""Where accelerate can log to."""

Functions = Mapping[str, Callable[..., Any]]

BETTER = {"accuracy": 1, "margin": 1, "ahead": 1, "loss": -1}
"""Numbers of held-out records -> 1 where more is better, -1 where less is."""


def at_least(least: float, **numbers: float | None) -> None:
    """Errors: UserError for the first number below ``least``; None is no number."""
    for name, value in numbers.items():
        if value is not None and not value >= least:
            raise UserError(f"{name}: got {value}, takes {least:g} or more")


def above(bound: float, **numbers: float) -> None:
    """Errors: UserError for the first number that is not above ``bound``."""
    for name, value in numbers.items():
        if not value > bound:
            raise UserError(f"{name}: got {value}, takes a number above {bound:g}")


@dataclass(frozen=True)
class Batch(Record):
    """What a step of an online recipe samples, and how it is learned from.

    prompts, group: prompts of a step, and outputs of each. epochs, updates: passes over a rollout, and updates in each, which take every so
    many rows of all groups. micro_rows, micro_steps: rows, and steps of each row, in one backward pass; they change the memory and not the
    loss, and only a method that weighs steps one by one takes micro_steps; None: one denoising step, or all tokens. Where memory ends in a
    pass, half of its rows are taken from then on, once, and the run says so. missing: what NaN rewards do: ``stop`` the run, or ``drop``
    their rows, and those of infinite ones. resample: further rollouts where the method drops groups (dynamic sampling). overlap: parts in
    which a step's prompts are sampled; rewards of a part are computed in a thread while the next one is sampled, which changes no number
    but by rounding. 1: rewards follow the rollout. staleness: 1 samples a step's rollout one step early, with the parameters before the
    update in between, while rewards of the step before are at work; ``old`` is what those parameters say, so that a method's ratio corrects
    for it, and methods without one are refused.

    Examples:
        >>> mm.Batch(prompts=10, group=12).micro_rows
        64
        >>> mm.Batch(prompts=0)
        Traceback (most recent call last):
        mmalign.types.UserError: prompts: got 0, takes 1 or more
    """

    prompts: Count = 8
    group: Count = 8
    epochs: Count = 1
    updates: Count = 1
    micro_rows: Count = 64
    micro_steps: Count | None = None
    missing: Literal["stop", "drop"] = "stop"
    resample: Natural = 3
    overlap: Count = 1
    staleness: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap > self.prompts:
            raise UserError(f"overlap: got {self.overlap} parts of {self.prompts} prompts, takes at most one for each")


@dataclass(frozen=True)
class RecordBatch(Record):
    """What an update of an offline recipe takes.

    records: of the data. micro_rows: rows in one backward pass, by memory; does not change the loss. Halved once where memory ends.
    reference_memory: MiB, of the machine and of a checkpoint, for what references said of rows, so that they are asked once and not in
    every pass over the data; 8 bytes for a token and reference. 0: they are asked each time, as are references that move, and those of
    policies that draw noise for a row (``forward``).
    """

    records: Count = 32
    micro_rows: Count = 16
    reference_memory: Natural = 256


@dataclass(frozen=True)
class Mix(Record):
    """Records that an online run learns from beside its rollouts: their loss is added to that of every update.

    records: of the data, as of an offline run; texts that the model was pretrained on, for one, as ``texts(schema="demonstrations")``.
    method: what is learned of them, one of an offline run: ``sft`` for the likelihood of such texts. weight: what their loss counts for.
    count: how many an update has.

    With ``sft`` this is PPO-ptx (InstructGPT, arXiv 2203.02155, eq. 2): gradients of both losses are added up before each update. The
    paper has weight 27.8, and eight times as many pretraining examples as episodes (recalled); its loss sums over a text's tokens, where
    ``sft`` takes the mean, so that weights are not comparable.

    Examples:
        >>> mm.Mix(records=[], method=mm.methods.sft(), weight=0.0)
        Traceback (most recent call last):
        mmalign.types.UserError: weight: got 0.0, takes a number above 0
    """

    records: Any
    method: Method
    weight: Positive = 1.0
    count: Count = 16


@dataclass(frozen=True)
class Reference(Record):
    """A named set of parameters: where it comes from, and how it follows the trained ones; or another model, which nothing trains.

    from_: a folder (an adapter for peft, whole weights) or a run, whose parameters it starts as; in YAML ``from``. every: it is renewed
    before every so many steps. shares: set -> its share of what it becomes then, of ``current``, ``ref``, itself and others; they add up
    to 1. ``{current: 1}``, a copy of the current parameters, by default. A LoRA set is mixed by its effective weights.
    policy: in place of these, a policy of the same kind around another model, of any width and depth, that can score the same rows: a
    teacher, a larger reference. It scores the rows as they are, so its temperature and template, or steps, sizes and dtype, have to be the
    trained one's; nothing is asked of how else it would sample.
    soup: in place of from_, several folders or runs, other references, or ``ref`` (what training began with), whose weighted mean it starts
    as and stays (SALSA, arXiv 2411.01798); ``shares`` is then a list, one for each, equal ones by default. Of LoRA the mean is one of
    effective weights.

    Examples:
        >>> mm.Reference(from_="runs/before", every=3)
        Reference(from_='runs/before', every=3, shares=None, policy=None, soup=None)
        >>> mm.Reference(policy="gpt2")
        Traceback (most recent call last):
        mmalign.types.UserError: policy: got 'gpt2', takes a policy: {use: transformers, model: ...}
    """

    from_: str | None = None
    every: Steps | None = None
    shares: dict[str, Annotated[float, within(0, 1)]] | list[Annotated[float, within(0, 1)]] | None = None
    policy: Policy | None = None
    soup: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        moved = [name for name, value in (("from", self.from_), ("every", self.every), ("shares", self.shares)) if value is not None]
        if self.policy is None and self.soup is None and not moved:
            raise UserError("from: missing; takes from (a folder or a run), every and shares, or both; or soup; or policy, another model")
        self._refuse_soup()
        if self.policy is not None and moved:
            raise UserError(f"{moved[0]}: given beside policy, and another model is never renewed from this one's; takes one of them")
        if isinstance(self.policy, (str, int, float, bool)):
            raise UserError(f"policy: got {self.policy!r}, takes a policy: {{use: transformers, model: ...}}")
        shares = self.shares.values() if isinstance(self.shares, Mapping) else self.shares or ()
        if self.shares is not None and abs(sum(shares) - 1) > 1e-6:
            raise UserError(f"shares: got {self.shares}, takes shares of 0 or more that add up to 1")

    def _refuse_soup(self) -> None:
        if self.soup is None:
            if isinstance(self.shares, list):
                raise UserError(f"shares: got {self.shares}, takes shares by the names of sets; a list stands beside soup")
            return
        beside = [("from", self.from_), ("every", self.every), ("policy", self.policy)]
        if others := [name for name, value in beside if value is not None]:
            raise UserError(f"soup: given beside {others[0]}, and a soup is made once, of what is listed; takes one of them")
        if len(self.soup) < 2:
            raise UserError(f"soup: got {self.soup}, takes two or more folders, runs or references")
        if self.shares is not None and (not isinstance(self.shares, list) or len(self.shares) != len(self.soup)):
            raise UserError(f"shares: got {self.shares}, takes a list with one share for each of the {len(self.soup)} of soup")

    @property
    def parts(self) -> list[tuple[str, float]]:
        """What a soup is made of, and the share of each; nothing where it is none."""
        soup = self.soup or []
        shares = self.shares if isinstance(self.shares, list) else [1 / max(1, len(soup))] * len(soup)
        return list(zip(soup, shares, strict=True))

    @property
    def renewal(self) -> dict[str, float] | None:
        """The set's shares of what it becomes as training goes, by set; None where nothing is said of it."""
        return self.shares if isinstance(self.shares, dict) else None


@dataclass(frozen=True)
class Stop(Record):
    """Early stopping, after some evaluations without a new best.

    judge: of what, by name: a reward or a judge of the evaluation, of which more is better; or of records that are held out
    ``held_out/accuracy``, ``held_out/margin`` or ``held_out/ahead``, and ``held_out/loss``, of which less is. patience: how many
    evaluations without a new best are too many.

    The parameters of the best evaluation are kept as the set ``best``, and its numbers are the run's. That judge then takes part in
    training: report another one.
    """

    judge: str
    patience: Count = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge.startswith("held_out/") and self._number not in BETTER:
            takes = ", ".join(f"held_out/{name}" for name in BETTER)
            raise UserError(f"judge: got {self.judge!r}, takes of held-out records {takes}: of others nobody says which way is better")

    def merit(self, row: Mapping[str, float]) -> float:
        """How good an evaluation is, the more the better; NaN where its judge says nothing."""
        return row.get(self.judge, math.nan) * (BETTER[self._number] if self.judge.startswith("held_out/") else 1)

    @property
    def _number(self) -> str:
        return self.judge.rpartition("/")[2]


@dataclass(frozen=True)
class Evaluation(Record):
    """The same prompts and seeds, judged every so often: what a person would get from the model now.

    every: steps between evaluations. prompts: to ask; the first 16 that are trained on by default. samples: outputs of every prompt, at
    fixed seeds. columns: how many of them the report shows. call: arguments of the sampler that users have, such as
    ``num_inference_steps``. judges: name -> a reward that training never sees, averaged over rows. metrics: name -> a function
    ``(outputs, prompts) -> {name: number}`` of the whole set. real: ``(prompts, columns) -> [prompts, columns, C, H, W]`` in 0..1 (F, C,
    H, W: videos), real data to show beside the samples. mark: of answers in words, ``(outputs, prompts) -> [{"mentions": [(start, end,
    object, whether it is there)], "objects": [...]}]``, what each of them says that is there and that is not, to be shown. blind: score
    the answers without their images too (``image_dependence``): two more passes over them. stop: when to end early. overlap: as of
    ``Batch``, of an evaluation's prompts. records: of an offline run, records that it is not trained on: the method's own numbers of them
    (``held_out/accuracy``, ``held_out/loss``), which ``stop`` may follow; what the run would be trained on and is among them is left out of
    its training. held_out: how many of them are taken. references: of a language model, further references to which
    the KL of the evaluation's samples is measured, ``kl/NAME`` in nats: beside a teacher the model that it was made of, so that a student
    that comes nearer to the one and further from the other is seen (teacher hacking).
    """

    every: Steps = 20
    prompts: Sequence[Any] | None = None
    samples: Count = 16
    columns: Count = 8
    call: dict[str, Any] = field(default_factory=dict)
    judges: Functions = field(default_factory=dict)
    metrics: Functions = field(default_factory=dict)
    real: Callable[..., Any] | None = None
    mark: Callable[..., Any] | None = None
    blind: bool = False
    stop: Stop | None = None
    overlap: Count = 1
    records: Any = None
    held_out: Count = 256
    references: Sequence[str] = ()


@dataclass(frozen=True)
class Devices(Record):
    """How a run of several processes divides its model: a copy in each, shards, or parts of a row.

    place: ``replicate``: every process holds all of it, of its gradients and of the optimiser's state. ``fsdp2``: each holds a part of
    the blocks that a model repeats, and of the optimiser's state for them, and gathers a block while it runs (torch's ``fully_shard``,
    FSDP2); the rest of it, embeddings and heads among it, is whole everywhere. Changes no number but by rounding.
    gathered: of ``fsdp2``: how long a gathered block stays: ``block``: while it runs. ``rollout``: while a rollout is drawn, so that a
    token and a denoising step gather nothing: a process then holds all blocks as it draws, and its part alone as it updates.
    mixed_precision: of ``fsdp2``: the type that blocks are gathered in and computed in, ``bfloat16``: half the bytes of a gather in
    float32. Parameters, their moving averages and the optimiser's state stay in the type that they have, gradients are summed in float32.
    offload: of ``fsdp2``, on GPUs: shards, and with them the optimiser's state and step, are on the CPU; a block's come to the GPU to be
    gathered, and its gradients go back. Changes no number but by rounding.
    sequence: so many processes compute each row together, each a part of its tokens, with what diffusers has for that (context
    parallelism): for videos and images whose activations do not fit on one GPU. Of ``replicate``, for denoisers that diffusers
    has a plan for (Flux, Wan) and that take no attention mask, at sizes whose tokens and heads it divides; not for gradients of rewards.
    Changes no number but by rounding.
    ring: of ``sequence``: so many of these processes pass their keys and values on to each other (ring attention), in place of exchanging
    heads for tokens: for more processes than heads can be divided by. 2 of ``sequence: 4`` are two rings of two. On GPUs, in bfloat16 or
    float16. Changes no number but by rounding.
    tensor: so many processes compute each row together, each a part of every layer's heads and of its widest products, by the plan that
    a language model of transformers brings along (tensor parallelism): for texts whose activations or caches do not fit on one GPU, and
    for rows that are to take less time. Of ``replicate``: weights stay whole in each process. For models whose heads it divides; not for
    those without a plan (GPT-2), with weights in 4 bits, an engine, or turns. Changes no number but by rounding.
    """

    place: Literal["replicate", "fsdp2"] = "replicate"
    gathered: Literal["block", "rollout"] = "block"
    mixed_precision: Literal["bfloat16"] | None = None
    offload: bool = False
    sequence: Count = 1
    ring: Count = 1
    tensor: Count = 1

    @property
    def together(self) -> tuple[str, int]:
        """How many processes compute each row, and by which key."""
        return ("tensor", self.tensor) if self.tensor > 1 else ("sequence", self.sequence)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, count in (("sequence", self.sequence), ("tensor", self.tensor)):
            if count > 1 and self.place == "fsdp2":
                raise UserError(f"{name}: got {count} with place: fsdp2, whose processes run blocks apart; takes place: replicate")
        if self.sequence > 1 and self.tensor > 1:
            raise UserError(f"tensor: got {self.tensor} with sequence: {self.sequence}; takes one of them, as the policy does")
        if self.sequence % self.ring:
            raise UserError(f"ring: got {self.ring} with sequence: {self.sequence}; takes a number that divides it, or 1")
        kept = self.gathered if self.gathered != "block" else None
        of_shards = {"gathered": kept, "mixed_precision": self.mixed_precision, "offload": self.offload or None}
        for name, value in of_shards.items() if self.place == "replicate" else ():
            if value is not None:
                raise UserError(f"{name}: got {value!r} with place: replicate, which has no shards; takes place: fsdp2")


@dataclass(frozen=True)
class RunSettings(Record):
    """What a run is called and keeps.

    name, folder: it is written to ``folder/name``. seed: everything random follows from it. checkpoint_every: steps between checkpoints.
    trackers: where to log besides, in accelerate's words. dead_steps: the run ends after so many steps in a row that taught nothing
    (gradients of 0 or not finite, rewards without a difference); None: never. non_finite: what becomes of an update of which the loss,
    the log-probabilities or the gradient are not finite: ``raise`` ends the run, ``skip`` leaves the update out, ``drop`` makes it of the
    other rows. non_finite_steps: the run ends after so many steps in a row with such an update; None: never. profile: measure where the
    time and memory of every step go, for the report. gradients: every so
    many steps, how entangled the gradients of good and bad rows are, and what the update did to both (``evaluations.entanglement``), at the
    cost of some three updates; None: never.
    """

    name: str = "run"
    folder: str = "runs"
    seed: Seed = 0
    checkpoint_every: Steps = 50
    trackers: Sequence[Tracker] = ("tensorboard",)
    dead_steps: Steps | None = 50
    non_finite: Literal["raise", "skip", "drop"] = "skip"
    non_finite_steps: Steps | None = 10
    profile: bool = False
    gradients: Steps | None = None
