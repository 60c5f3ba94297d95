"""The one seam: a pipeline that is guided while a ``with`` block lasts, and as it was afterwards.

The instance gets a class made on the spot, with the name and all else of its own, whose ``__call__`` runs the guidances and then
the pipeline's own code. What a guidance does, it does at one of four places (see README.md): around the denoisers, to the prediction
of a step, to the particles of a step, or to whole calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mmalign.arguments.facts import Differentiable, OfLatents, called
from mmalign.arguments.ranges import Finite
from mmalign.arguments.reads import columns_read, lacks
from mmalign.arguments.signatures import nearest, parameters
from mmalign.guidance._calls import as_type, fields, outputs_of, selected, user_call, without_columns
from mmalign.guidance._progress import one_bar
from mmalign.guidance._run import Guidance, GuidedRun, Samples, counted
from mmalign.guidance._steps import Stepper
from mmalign.guidance.ledger import Ledger
from mmalign.policies.pipelines.calls.interception import graphed
from mmalign.policies.pipelines.loading.memory import DENOISERS
from mmalign.policies.pipelines.loading.unfit import reason
from mmalign.rooms import find, index, offered
from mmalign.types import UserError

Reward = Callable[..., Any]


@dataclass
class Guided:
    """What ``guide`` yields.

    ledger: what was spent in the block so far. trace: what guidances noted. scores: of the last call's outputs, where it scored them.
    """

    guidance: Guidance
    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    ledger: Ledger = field(default_factory=Ledger)
    trace: list[dict[str, Any]] = field(default_factory=list)
    scores: torch.Tensor | None = None


@contextmanager
def guide(
    pipe: Any,
    reward: Reward | Mapping[str, Reward] | None = None,
    *,
    guidance: Guidance | str | None = None,
    weights: Mapping[str, Finite] | None = None,
    **settings: Any,
) -> Iterator[Guided]:
    """Guides every call of a diffusers pipeline in the block; the pipeline is as it was afterwards, also after an exception.

        with mm.guide(pipe, mm.rewards.aesthetic(), scale=2.0):
            image = pipe("a lighthouse at dusk").images[0]

    Args:
        pipe: a pipeline; nothing of its call changes: prompts, sizes, generators, output types. Its progress bar is one for a call, and
            its callbacks hear of steps of samples alone, not of decodes. A prompt with columns (``types.Prompt``) is one as well.
        reward: ``(outputs, prompts, **columns) -> [B]``, or several by name, which ``weights`` (1 by default) sum up. Outputs are images
            ``[B, C, H, W]`` or videos ``[B, F, C, H, W]`` in 0..1.
        guidance: what a function of ``mm.guidance`` returns, or its name. By default ``universal`` where every reward says that it is
            differentiable, and ``fk`` otherwise. One that says nothing is tried where a guidance asks for its gradient.
        settings: keywords of the function that is named.

    Blocks nest: what is around the denoiser, changes steps and filters particles works together, and a search runs all that is inside.
    The ledger of a block counts all calls in it.

    Errors: UserError for what is no diffusers pipeline, and for a guidance that misses its reward or gradient, or takes other settings.

    Examples:
        >>> pipe = mm.worlds.digits()
        >>> with mm.guide(pipe, mm.worlds.digits_proxy(), guidance="best_of", count=3) as guided:
        ...     images = pipe("a handwritten seven", num_inference_steps=2).images
        >>> len(images), guided.ledger.rewards  # one of three that were scored
        (1, 3)
    """
    if reward is None:
        rewards: Mapping[str, Reward] = {}
    elif isinstance(reward, Mapping):
        rewards = reward
    else:
        rewards = {"reward": reward}
    chosen = _chosen(guidance, rewards, settings)
    guided = Guided(chosen, rewards, _weights(rewards, weights))
    kind = type(pipe)
    inner: tuple[Guided, ...] = kind.__dict__.get("_guides", ())
    _check(pipe, chosen, rewards, inner)
    pipe.__class__ = _guided_class(kind.__dict__.get("_unguided", kind), (*inner, guided))
    try:
        yield guided
    finally:
        pipe.__class__ = kind


def _chosen(guidance: Guidance | str | None, rewards: Mapping[str, Reward], settings: dict[str, Any]) -> Guidance:
    if guidance is None:
        if not rewards:
            raise UserError("guide: got neither a reward nor a guidance, takes one or both")
        guidance = "universal" if all(_differentiable(reward) for reward in rewards.values()) else "fk"
    if isinstance(guidance, Guidance):
        if settings:
            raise UserError(f"guide: got {', '.join(settings)} beside a guidance that is made; give them to the function that makes it")
        return guidance
    _refuse_settings(guidance, settings)
    made = by_name(guidance, settings)
    if not isinstance(made, Guidance):
        raise UserError(f"guidance: got {guidance!r}, which does not guide a pipeline")
    return made


def _refuse_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Errors: UserError for a keyword that neither ``guide`` nor the guidance of that name takes, with those of both."""
    known, any_key = parameters(find("mmalign.guidance", name))
    own = [key for key in parameters(guide)[0] if key != "pipe"]
    for key in settings:
        if key not in known and not any_key:
            takes = f"guide takes {', '.join(own)}, and {name}, which guides here, {', '.join(known)}"
            raise UserError(f"guide.{key}: unknown key{nearest(key, [*own, *known])}; {takes}")


def by_name(name: str, settings: Mapping[str, Any]) -> Any:
    """What a function of ``mm.guidance``, or one at an import path, makes of its keywords.

    Errors: UserError for a name that there is not, and for keywords that it does not take, with the nearest.
    """
    function = find("mmalign.guidance", name)
    try:
        return (offered("mmalign.guidance", name) if name in index("mmalign.guidance") else function)(**settings)
    except TypeError as error:
        raise UserError(f"guidance {name}: {error}") from error


def _differentiable(reward: Reward) -> bool | None:
    """What a reward says of itself, None where it says nothing: it is not chosen for its gradient, and is tried where one is asked for."""
    return reward.differentiable if isinstance(reward, Differentiable) else None


def _weights(rewards: Mapping[str, Reward], weights: Mapping[str, float] | None) -> dict[str, float]:
    if strange := sorted(set(weights or {}) - set(rewards)):
        raise UserError(f"guide.weights: got {', '.join(strange)}, takes names of rewards: {', '.join(rewards)}")
    return {name: float((weights or {}).get(name, 1.0)) for name in rewards}


def _check(pipe: Any, chosen: Guidance, rewards: Mapping[str, Reward], inner: tuple[Guided, ...]) -> None:
    name = type(pipe).__name__
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, Mapping) or not any(part in parts for part in DENOISERS):
        raise UserError(f"guide: got {name}, takes a diffusers pipeline with one of {', '.join(DENOISERS)}")
    if (why := reason(name)) and (chosen.steps or chosen.search):
        raise UserError(f"guide: {name} cannot be guided step by step: {why}")
    if "reward" in chosen.needs and not rewards:
        raise UserError(f"guidance {chosen.name}: takes a reward, got none")
    noisy = "noisy" in chosen.needs
    if whose := [called(reward, key) for key, reward in rewards.items() if isinstance(reward, OfLatents) and reward.of_latents != noisy]:
        of, shows, takes = ("outputs", "latents", "on_latents") if noisy else ("latents", "outputs", "a reward of those")
        raise UserError(f"guide: {whose[0]} scores {of}, and {chosen.name} shows rewards {shows}; takes {takes}")
    if "gradient" in chosen.needs:
        for key, reward in rewards.items():
            if _differentiable(reward) is False:
                label = called(reward, key)
                raise UserError(f"guidance {chosen.name}: {label} is not differentiable; take one that is, or fk, svdd or best_of")
    if chosen.filter and any(guided.guidance.filter for guided in inner):
        raise UserError(f"guide: {chosen.name} inside another filter of particles; one of them may be there")


def _guided_class(base: type, guides: tuple[Guided, ...]) -> type:
    own: Any = base.__call__  # type: ignore[operator]

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _call(self, own, guides, args, kwargs)

    attributes = {"__call__": call, "_guides": guides, "_unguided": base, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), attributes)


def _call(pipe: Any, own: Any, guides: tuple[Guided, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    before = Ledger()
    outer = next((guided for guided in reversed(guides) if guided.rewards), guides[-1])
    parts = tuple(guided.guidance for guided in guides)
    try:
        with ExitStack() as stack:
            nets = {name: pipe.components[name] for name in DENOISERS if isinstance(pipe.components.get(name), torch.nn.Module)}
            stack.enter_context(counted(nets, before))
            for part in parts:
                if part.around is not None:
                    stack.enter_context(part.around(pipe))
            inside = any(part.steps or part.search for part in parts)
            plain = [without_columns(value) for value in args], {name: without_columns(value) for name, value in kwargs.items()}
            if not inside and all(part.about is None for part in parts):
                return own(pipe, *plain[0], **plain[1])
            call, bar = user_call(pipe, args, kwargs), stack.enter_context(one_bar(pipe))
            _refuse_columns(outer.rewards, call.columns)
            run = GuidedRun(pipe, call, parts, outer.rewards, outer.weights, before, bar)
            for part in parts:
                if part.about is not None:
                    stack.enter_context(part.about(run))
            if not inside:
                return own(pipe, *plain[0], **plain[1])
            result, outer.scores = _guided(run)
            outer.trace.extend(run.trace)
            return result
    finally:
        for guided in guides:
            _add(guided.ledger, before)


def _refuse_columns(rewards: Mapping[str, Reward], columns: Mapping[str, Any]) -> None:
    """Errors: UserError for a reward that says it reads a column which the prompts of the call have not."""
    for name, reward in rewards.items():
        if why := lacks(columns_read(reward) - {"level"}, columns):  # noisy latents come with their level
            raise UserError(f"reward {name}: {why}" + ("" if columns else "; a prompt with columns is a mm.Prompt"))


def _add(total: Ledger, more: Ledger) -> None:
    for name, value in vars(more).items():
        setattr(total, name, getattr(total, name) + value)


def _guided(run: GuidedRun) -> tuple[Any, torch.Tensor | None]:
    """The call's result as the user asked for it, and the scores of its outputs where they are known."""
    call = run.call
    search = [part.search for part in run.guides if part.search is not None]
    if call.output_type == "latent" and (search or any(part.filter for part in run.guides)):
        raise UserError("output_type: got 'latent' under a guidance that chooses among outputs, takes pil, np or pt")
    if len(search) > 1:
        raise UserError("guide: one search inside another; one of them may be there")
    scored = bool(search) or any(part.filter is not None for part in run.guides)
    if not scored:
        rows = list(range(len(call.prompts)))
        seeds = run.seeds(1, peek=True)
        kind = "latent" if call.output_type == "latent" else "pt"
        result, _ = stepped(run, rows, seeds, generator=call.generator, output_type=kind)
        outputs = as_type(outputs_of(result).detach(), call.output_type)
        return selected(result, outputs, rows, len(rows), call, type(result)), None
    samples = search[0](run) if search else sampled(run, run.seeds(run_particles(run)))
    outputs = as_type(samples.outputs, call.output_type)
    of = len(next(iter(fields(samples.result).values())))
    return selected(samples.result, outputs, samples.places, of, call, samples.kind), samples.scores


def run_particles(run: GuidedRun) -> int:
    """Rows that are sampled for each that is wanted."""
    return max([1, *(part.particles for part in run.guides)])


def stepped(run: GuidedRun, rows: list[int], seeds: list[int], **call: Any) -> tuple[Any, Stepper | None]:
    """What the pipeline returns for rows that stand side by side as its particles, under what steps there are."""
    steppers = [part for part in run.guides if part.steps]
    stepper = Stepper(run, steppers, rows, seeds) if steppers else None
    graph = stepper is not None and stepper.graph
    with torch.set_grad_enabled(graph), ExitStack() as stack:
        if stepper is not None and graph:
            stack.enter_context(graphed(run.pipe))
            for net in run.caller.denoisers.values():
                stack.callback(net.register_forward_pre_hook(stepper.hear, with_kwargs=True).remove)
        result = run.sample(rows, seeds, player=stepper.player() if stepper else None, **call)
    return result, stepper


def sampled(
    run: GuidedRun, seeds: list[int], *, rows: list[int] | None = None, latents: Any = None, generator: Any = None, scored: bool = True,
) -> Samples:  # fmt: skip
    """One output for each wanted row, particles sampled and one of them chosen, with its score.

    seeds: ``particles`` for each row. latents: a place and a latent for each of these. scored: NaN for all scores where not.
    """
    wanted = list(range(len(run.call.prompts))) if rows is None else rows
    count = run_particles(run)
    wide = [row for row in wanted for _ in range(count)]
    result, stepper = stepped(run, wide, seeds, latents=latents, generator=generator)
    outputs = outputs_of(result).detach()
    unknown = torch.full((len(wide),), float("nan"), dtype=torch.float64)
    scores = run.score(outputs, wide).detach().double().cpu() if run.rewards and scored else unknown
    if stepper is None or stepper.filter is None:
        return Samples(result, outputs, scores, list(range(len(wide))), type(result))
    chosen = stepper.filter.chosen(scores.view(-1, count))
    places = (torch.arange(len(wanted)) * count + chosen.cpu()).tolist()
    return Samples(result, outputs[places], scores[places], places, type(result))
