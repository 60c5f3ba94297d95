"""One call of a guided pipeline: what guidances are made of, and what they may ask for (outputs of latents, scores, more rows)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mmalign.arguments.parameters import accepted
from mmalign.guidance._calls import UserCall, outputs_of, repeated, seeds_of
from mmalign.guidance._progress import OneBar
from mmalign.guidance.ledger import Ledger
from mmalign.policies.pipelines.calls.calling import Caller, one_line
from mmalign.policies.pipelines.calls.interception import Made, Place, watched
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.policies.pipelines.rollouts.probing import place_of
from mmalign.types import Kernel, Prediction, UserError

ALL = 10**9  # steps: through all of them the denoiser stands still
CALLBACKS = ("callback_on_step_end", "callback")  # hear of a sample's own steps alone


class Filter(Protocol):
    """Particles of one call. ``K`` rows of each wanted one stand side by side."""

    def weigh(self, moment: Moment, prediction: Prediction) -> Tensor | None:
        """Row numbers ``[B]`` that go on from here, or None for all of them as they are."""
        ...

    def proposed(self, log_ratio: Tensor) -> None:
        """``ln p(step) - ln q(step)``, ``[B]``, of steps that were drawn from guided ``q`` in place of ``p``."""
        ...

    def chosen(self, scores: Tensor) -> Tensor:
        """Of each group the place ``[groups]`` of what is handed over; scores of the outputs ``[groups, K]``."""
        ...


@dataclass(frozen=True)
class Guidance:
    """One way to guide, as a record of what it does at the seams; made by the functions of this package.

    needs: of ``reward`` (what ``guide`` is given), ``gradient`` (of it), ``denoiser`` (its graph in every step), ``noisy`` (a reward of
    noisy latents). around: of a pipeline, in each call; ``about``: of a call whose arguments have to be known. change: of a step's
    prediction. filter: of particles, ``particles`` rows for each that is wanted. search: over whole calls. repeats: how often each level
    is come by (time travel). kernel: how steps are made random; None leaves that to the others, or to the ODE.
    """

    name: str
    needs: frozenset[str] = frozenset()
    around: Callable[[Any], AbstractContextManager[Any]] | None = None
    about: Callable[[GuidedRun], AbstractContextManager[Any]] | None = None
    change: Callable[[GuidedRun, Moment, Sequence[int]], Prediction] | None = None
    filter: Callable[[GuidedRun, Sequence[int], int], Filter] | None = None
    search: Callable[[GuidedRun], Samples] | None = None
    particles: int = 1
    repeats: int = 1
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        if self.kernel is not None and not callable(self.kernel):
            raise UserError(f"{self.name}.kernel: got {self.kernel!r}, takes a kernel, such as mm.kernels.ddim(eta=1.0), or None")

    @property
    def steps(self) -> bool:
        """Whether it answers for the scheduler."""
        return self.change is not None or self.filter is not None


class Samples(NamedTuple):
    """Rows that were sampled.

    result: what the pipeline returned, rows that were not picked included. outputs: of the picked ones, ``[n, ...]``, with their
    scores ``[n]`` and places in the result. kind: the class of what the pipeline itself returns.
    """

    result: Any
    outputs: Tensor
    scores: Tensor
    places: list[int]
    kind: type


@dataclass
class GuidedRun:
    """See the module. ``rewards``: name -> reward, with ``weights`` of the same names; ``trace``: a dict for each event worth keeping."""

    pipe: Any
    call: UserCall
    guides: tuple[Guidance, ...]
    rewards: Mapping[str, Callable[..., Any]]
    weights: Mapping[str, float]
    ledger: Ledger
    bar: OneBar
    seed: int | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.caller = Caller(self.pipe, {name: value for name, value in self.call.shared.items() if name != "prompt"})
        self.scheduler = self.pipe.scheduler
        self.known = list(dict.fromkeys(self.call.prompts))
        self._scored: tuple[Tensor, Tensor] | None = None
        self._repeats: bool | None = None

    # Rewards

    def score(self, outputs: Any, rows: Sequence[int], *, names: Sequence[str] | None = None, **beside: Any) -> Tensor:
        """The weighted sum of the rewards of outputs of some rows, ``[n]`` float64 on the CPU unless it has a gradient.

        A reward gets the columns of these rows' prompts that it takes, and ``beside``. names: of the rewards; all by default.
        """
        prompts = [self.call.prompts[row] for row in rows]
        columns = {name: [values[row] for row in rows] for name, values in self.call.columns.items()}
        total = sum(
            self.weights[name] * checked(name, reward(outputs, prompts, **accepted(reward, columns), **beside), len(rows))
            for name, reward in self.rewards.items()
            if names is None or name in names
        )
        self.ledger.rewards += len(rows)
        scores = torch.as_tensor(total)
        self.ledger.missing += int((~scores.detach().isfinite()).sum())
        return scores if scores.requires_grad else scores.double().cpu()

    def score_latents(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        """Scores of what clean latents decode to; those of the latents that were asked for last are remembered."""
        if self._scored is None or self._scored[0] is not latents:
            self._scored = (latents, self.score(self.decode(latents, rows), rows))
        return self._scored[1]

    # Calls

    def decode(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        """What the pipeline makes of clean latents ``[n, ...]``, in 0..1: its own call with all steps over and these at the end.

        With a gradient where latents have one.
        """
        own, kept = self.pipe.scheduler, {name: value for name, value in self.pipe.__dict__.items() if name.startswith("_")}
        self.pipe.scheduler = self.scheduler
        try:
            with torch.set_grad_enabled(latents.requires_grad):
                player = Player(lambda moment: latents.to(moment.x.dtype))
                with self._silent() as nothing:
                    result = self._call([0] * len(rows), rows, player, skip=ALL, output_type="pt", **nothing)
        except RuntimeError as error:
            if "requires grad" not in str(error):
                raise
            raise UserError(
                f"{type(self.pipe).__name__}: no gradient comes through what it does with its outputs; fk, svdd, best_of need none"
            ) from error
        finally:
            self.pipe.scheduler = own
            self.pipe.__dict__.update(kept)
        return outputs_of(result)

    def arguments(self, rows: Sequence[int]) -> dict[str, Any]:
        """Arguments of a call for some rows that differ from the user's own: what each row has of its own, and media of all of them.

        Where there are several rows, whether a pipeline takes one picture for all of them or one for each is measured: the first step of
        a call is asked for, with the picture as it is, and with one for each. Errors: UserError where it takes neither.
        """
        own = self.call.arguments(rows)
        if len(rows) == 1 or not self.call.media:
            return own
        if self._repeats is None:
            self._repeats = self._takes_one_each(rows, own)
        return {**own, **self._one_each(len(rows))} if self._repeats else own

    def _one_each(self, rows: int) -> dict[str, Any]:
        return {name: repeated(name, value, rows) for name, value in self.call.media.items()}

    def _takes_one_each(self, rows: Sequence[int], own: dict[str, Any]) -> bool:
        errors: list[Exception] = []
        for more in ({}, self._one_each(len(rows))):
            try:
                self.first_moment(rows, [0] * len(rows), {**own, **more})
            except (IndexError, TypeError, ValueError, RuntimeError) as error:  # whatever a pipeline's own code raises
                errors.append(error)
            else:
                return bool(more)
        kind, names = type(self.pipe).__name__, " and ".join(self.call.media)
        try:
            self.first_moment(rows[:1], [0])
        except (IndexError, TypeError, ValueError, RuntimeError) as error:  # so it is not the number of rows
            raise UserError(f"{kind}: refuses this call with {names}: {one_line(error)}") from error
        why = one_line(errors[0])
        raise UserError(f"{kind}: takes {names} for one row at a time ({why}); best_of with rows_at_once=1 draws so") from errors[0]

    def first_moment(self, rows: Sequence[int], seeds: list[int], arguments: Mapping[str, Any] | None = None) -> Moment | None:
        """The first question that a call of some rows asks, in which no denoiser has moved; None where it asks none.

        arguments: in place of those of ``arguments``.
        """
        from mmalign.policies.pipelines.calls.interception import Finished

        moments: list[Moment] = []

        def answer(moment: Moment) -> Tensor:
            moments.append(moment)
            raise Finished

        self.until_finished(rows, seeds, Player(answer), arguments, skip=ALL)
        return moments[0] if moments else None

    def until_finished(
        self, rows: Sequence[int], seeds: list[int], player: Player, arguments: Mapping[str, Any] | None = None, *, skip: int = 0
    ) -> None:
        """A call that the player leaves, and that nobody else hears of."""
        arguments = self.arguments(rows) if arguments is None else arguments
        prompts = [self.call.prompts[row] for row in rows]
        with self._silent() as nothing:
            self.caller.until_finished(prompts, seeds, player, self.known, skip=skip, **{**arguments, **nothing})

    @contextmanager
    def _silent(self) -> Iterator[dict[str, Any]]:
        """Without a bar; yields arguments that leave out the user's callbacks."""
        before, self.bar.silent = self.bar.silent, True
        try:
            yield {name: None for name in CALLBACKS if name in self.call.shared}
        finally:
            self.bar.silent = before

    def _call(self, seeds: list[int], rows: Sequence[int], player: Player | None, **call: Any) -> Any:
        self.ledger.decodes += len(rows) if call.get("output_type") != "latent" else 0
        prompts = [self.call.prompts[row] for row in rows]
        silent = {"prompt": None} if "prompt" in self.call.shared else {}
        arguments = {**silent, **self.arguments(rows), **call}
        return self.caller(prompts, seeds, player, self.known, **arguments)

    def sample(
        self, rows: Sequence[int], seeds: list[int], *, player: Player | None = None, generator: Any = None,
        latents: tuple[Place | None, Tensor] | None = None, output_type: str = "pt",
    ) -> Any:  # fmt: skip
        """What the pipeline returns for some rows; the caller's own scheduler where there is no player."""
        more: dict[str, Any] = {"output_type": output_type}
        if generator is not None:
            more["generator"] = generator
        place, x = latents or (None, None)
        if x is not None and place is None:
            more["latents"] = x
        return self._call(seeds, rows, player, place=None if place is None else (place, x), **more)

    def first_latents(self, rows: Sequence[int], seeds: list[int]) -> tuple[Place | None, Tensor]:
        """The noise that a call would start from, and where the pipeline makes it (None: inside its call, which takes ``latents``).

        Errors: UserError where it makes it there and takes none.
        """
        with torch.no_grad(), watched(self.pipe) as made:
            moment = self.first_moment(rows, seeds)
        place = None if moment is None else self.place_of(made, moment.x, rows, seeds)
        if moment is None or (place is None and not self._takes_latents(rows, seeds, moment.x)):
            raise UserError(f"{type(self.pipe).__name__}: its first latents are made inside its call, so that no others can be put there")
        return place, moment.x.clone()

    def place_of(self, made: Made, x: Tensor, rows: Sequence[int], seeds: list[int]) -> Place | None:
        """Where a call of some rows made its first latent ``x``, or what that is a part of."""
        arguments = self.arguments(rows)
        return place_of(made, x, lambda player, place: self.until_finished(rows, seeds, player, {**arguments, "place": place}, skip=ALL))

    def _takes_latents(self, rows: Sequence[int], seeds: list[int], x: Tensor) -> bool:
        """Whether a call begins at what it is given as ``latents``."""
        if "latents" not in self.caller.accepts:
            return False
        try:
            with torch.no_grad():
                moment = self.first_moment(rows, seeds, {**self.arguments(rows), "latents": x})
        except (IndexError, TypeError, ValueError, RuntimeError):  # whatever a pipeline's own code raises: of another form
            return False
        return moment is not None and moment.x.shape == x.shape and torch.allclose(moment.x.float(), x.float(), rtol=1e-3, atol=1e-5)

    def seeds(self, copies: int, *, peek: bool = False) -> list[int]:
        """Seeds of ``copies`` of each row, those of a row side by side. peek: leaves a user's generators where they are."""
        own = self.call.generator
        if peek and own is not None:
            own = [_copy(generator) for generator in own] if isinstance(own, (list, tuple)) else _copy(own)
        return seeds_of(own, len(self.call.prompts), copies)

    def rng(self, seeds: Sequence[int]) -> torch.Generator:
        """A generator on the CPU for what a call decides besides its noise."""
        return torch.Generator().manual_seed((sum(seeds) ^ 0x2545F4914F6CDD1D) % 2**63)


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def checked(name: str, scores: Any, rows: int) -> Tensor:
    """What a reward said of so many outputs, ``[rows]``. Errors: UserError for anything else."""
    if isinstance(scores, Mapping):
        scores = next(iter(scores.values())) if len(scores) == 1 else scores
    table = scores if isinstance(scores, Tensor) else None
    if table is None and isinstance(scores, Sequence):
        table = torch.tensor([float("nan") if score is None else float(score) for score in scores], dtype=torch.float64)
    if table is None or tuple(table.shape) != (rows,):
        got = list(table.shape) if table is not None else type(scores).__name__
        raise UserError(f"reward {name}: got {got} for {rows} outputs, takes one number for each ([{rows}])")
    return table


@contextmanager
def counted(denoisers: Mapping[str, nn.Module], ledger: Ledger) -> Iterator[None]:
    """Counts the rows that denoisers see, and the seconds of the block."""

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ledger.evaluations += _rows([*args, *kwargs.values()])

    started = time.perf_counter()
    with ExitStack() as stack:
        for module in denoisers.values():
            stack.callback(module.register_forward_pre_hook(count, with_kwargs=True).remove)
        try:
            yield
        finally:
            ledger.seconds += time.perf_counter() - started


def _rows(values: list[Any]) -> int:
    """The rows of a denoiser's input: those of its first tensor of three dimensions or more, or the length of a list of tensors."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim >= 3:
            return len(value)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return len(value)
    return 1
