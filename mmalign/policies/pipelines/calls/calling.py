"""A pipeline's own ``__call__`` as a policy asks for it: with gradient, seeded by row, prompts encoded once, finished steps skipped."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from mmalign.arguments.signatures import Parameter, fit, nearest, parameters
from mmalign.matching import reading, refuse_nowhere, refuse_unfinished
from mmalign.policies.pipelines.calls import guided_branches
from mmalign.policies.pipelines.calls.encoded_once import encoded_once
from mmalign.policies.pipelines.calls.interception import Finished, Place, placed, seeded, settled, skipped
from mmalign.policies.pipelines.calls.scheduler import Moment, Player, seat
from mmalign.policies.pipelines.loading import parts
from mmalign.policies.pipelines.loading.memory import DENOISERS, Offloaded
from mmalign.policies.pipelines.loading.unfit import reason
from mmalign.policies.settings import type_of
from mmalign.types import UserError, contents

SHOWN, DIGITS = 80, 9  # letters of a prompt in a message; of a class's number
GUIDANCE = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")  # 1.0 switches classifier-free guidance off
BESIDE = {"audio_guidance_scale": 1.0, "modality_scale": 1.0, "audio_modality_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
"""What switches off a call's other guidances: of the sound, of video and sound by each other, of blocks that are left out (LTX-2)."""
REFUSED = (UserError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, RuntimeError)
"""What pipelines, tokenizers and readers of pictures raise of a prompt that they cannot use."""
ALONE = "isolate_modalities"  # an argument of denoisers of several streams: whether each is denoised without the others


def load(name: str, *, dtype: str | None = None) -> Any:
    """``DiffusionPipeline.from_pretrained``.

    Errors: UserError for another type, where there is no such pipeline, for damaged files, and for tensors of a part that are missing,
    left over or of another shape.
    """
    from diffusers import DiffusionPipeline

    kind = type_of(dtype)
    refuse_nowhere("policy.pipeline", name, "a pipeline")
    refuse_unfinished("policy.pipeline", name)
    home = parts.own_class(name) or DiffusionPipeline
    with reading("policy.pipeline", name, "a pipeline, a folder or a hub id"):
        pipe = home.from_pretrained(name, **({} if kind is None else {"dtype": kind}))
        parts.refuse_unlike_parts("policy.pipeline", pipe, name)
    return pipe


def refuse_other(pipe: Any) -> None:
    """UserError for what is no pipeline."""
    from diffusers import DiffusionPipeline

    if not isinstance(pipe, DiffusionPipeline) and not reason(type(pipe).__name__):  # of those that are none, why, by their name
        raise UserError(f"policy.pipeline: got a {type(pipe).__name__}, takes a pipeline of diffusers, or the folder or hub id of one")


class Caller:
    """Calls one pipeline, always with the arguments given here; ``denoisers`` are its own, by name.

    Errors: UserError for a pipeline without a denoiser, without an argument that was given, or among ``unfit.UNFIT``.
    """

    def __init__(self, pipe: Any, call: dict[str, Any], conditions: Callable[[list[str]], dict[str, Any]] | None = None):
        self.pipe, self.call, self.conditions = pipe, call, conditions
        if why := reason(type(pipe).__name__):
            raise UserError(f"policy.pipeline: {type(pipe).__name__} is no policy: {why}")
        refuse_arguments(pipe, call, "policy")
        self.accepts, self.classes = frozenset(arguments_of_call(pipe)), classes_of(pipe)
        self.example = "" if "prompt" in self.accepts or "class_labels" not in self.accepts else "0"  # a prompt, where any will do
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        self.denoisers = {name: parts[name] for name in DENOISERS if name in parts}
        if not self.denoisers:
            raise UserError(
                f"policy.pipeline: {type(pipe).__name__} registers {', '.join(parts) or 'no module'}; takes its denoiser under one of the "
                f"names {', '.join(DENOISERS)}, by which it is known what is trained"
            )
        # what need not run in steps that are over: the denoisers, and what only speaks to them
        self.still = {**self.denoisers, **{name: part for name, part in parts.items() if name.startswith("controlnet")}}
        self.away: Offloaded | None = None
        self.takes_several = False  # rows in one call; not known before it is tried, see ``refusals``
        self.branches: guided_branches.Branches | None = None  # told apart where the gradient of one alone is wanted
        self._embeddings: dict[Any, Any] = {}
        self._device: tuple[Any, torch.device] | None = None
        self._shapes: dict[Any, Any] = {}

    def __call__(
        self, prompts: list[str], seeds: list[int], player: Player | None, together: list[str], skip: int = 0,
        place: tuple[Place, Tensor] | None = None, until: int | None = None, **call: Any,
    ) -> Any:  # fmt: skip
        """The pipeline's own call, with the ``no_grad`` that it wears taken off.

        player: who answers for the scheduler; None leaves the pipeline its own. skip: steps through which the denoiser stands
        still; until: the step from which on it does so again. place: a latent to be put where the pipeline makes its first one.
        """
        pipe, named = self.pipe, named_rows(self.accepts, prompts, self.classes)
        device = self.device()
        generators: Any = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        if len(prompts) == 1:
            generators = generators[0]
        arguments = {**named, "generator": generators, **self.call, **(self.conditions(prompts) if self.conditions else {}), **call}
        arguments = {name: _beside_prompts(name, value, len(prompts)) for name, value in arguments.items()}
        with ExitStack() as stack:
            if self.away is not None:
                stack.callback(self.away.put_away)
            stack.enter_context(settled(pipe, device))
            stack.enter_context(seeded(pipe, seeds, device))
            stack.enter_context(encoded_once(pipe, together, self._embeddings))
            if player is not None:
                seated = stack.enter_context(seat(pipe, player, len(prompts)))
                if player.timesteps is not None:
                    stack.enter_context(by_itself(self.denoisers))
                elif self.branches is not None:  # a probe asks without guidance
                    stack.enter_context(guided_branches.detached(pipe, self.denoisers, self.branches))
                if skip or until is not None:
                    over = lambda: seated.column < skip or (until is not None and seated.column >= until)  # noqa: E731
                    stack.enter_context(skipped(self.still, over, len(prompts), self._shapes))
            if place is not None:
                stack.enter_context(placed(pipe, *place))
            return inspect.unwrap(type(pipe).__call__)(pipe, **{name: value for name, value in arguments.items() if name in self.accepts})

    def tell_branches(self, prompts: Sequence[str], gradient: str = "conditional") -> None:
        """Finds out, once, which of the denoiser's work is asked without the prompt; from now on that has no gradient.

        prompts: of the call's kind; the first two that differ are used, or a plain one beside a single one. gradient: that of guidance;
        ``both`` needs to know nothing.

        Errors: UserError where it cannot be told.
        """
        if gradient == "both" or self.branches is not None:
            return
        others = [prompt for prompt in (*prompts, self.example, "1") if prompt != prompts[0]]
        two, fixed = [prompts[0], others[0]], [prompts[0]] * 2

        def answer(moment: Moment) -> Tensor:
            if moment.left == 1:
                raise Finished
            return moment.x

        def lead(rows: list[int]) -> None:
            conditions = self.conditions(fixed[: len(rows)]) if self.conditions else {}
            self.until_finished([two[row] for row in rows], list(range(len(rows))), Player(answer), two, **conditions)

        try:
            self.branches = guided_branches.measured(self.pipe, self.denoisers, lead)
        except torch.OutOfMemoryError:
            raise
        except guided_branches.ONE_ROW as error:
            got = f"{guided_branches.KEY}: got conditional, and {type(self.pipe).__name__}"
            raise UserError(f"{got} takes no two prompts at once ({one_line(error)}); takes both") from error

    def device(self) -> torch.device:
        """Where the pipeline runs. diffusers searches all modules for hooks to tell; it is asked when a denoiser has moved, or got one."""
        first = next(iter(self.denoisers.values()))
        here = (next(first.parameters()).device, "_hf_hook" in vars(first), "_diffusers_hook" in vars(first))
        if self._device is None or self._device[0] != here:
            self._device = here, self.pipe._execution_device
        return self._device[1]

    def until_finished(self, *args: Any, **call: Any) -> None:
        """The call, for what the player hears of it, until the player leaves it."""
        with suppress(Finished):
            self(*args, output_type="latent", return_dict=False, **call)

    def images(
        self, prompts: list[str], seeds: list[int], player: Player | None, together: list[str], *, skip: int = 0, until: int | None = None,
        decode: bool = True, **call: Any,
    ) -> Tensor:  # fmt: skip
        """What a whole call makes, ``[B, ...]`` in 0..1. decode: False leaves it at the latents that the pipeline itself returns then."""
        refuse_arguments(self.pipe, call, "call")  # the call itself leaves out what some pipelines alone take
        result = self(prompts, seeds, player, together, skip, until=until, output_type="pt" if decode else "latent", **call)
        outputs = next(iter(result.values())) if isinstance(result, Mapping) else result[0]
        many = isinstance(outputs, list)
        return (torch.stack([torch.as_tensor(numpy.asarray(o)) for o in outputs]) if many else torch.as_tensor(outputs)).float()


def noting(pipe: Any, last: list[Tensor]) -> dict[str, Any]:
    """Arguments of a pipeline's calls, each of which adds its last latents to a list.

    Errors: UserError for one that says nothing of its steps.
    """
    if "callback_on_step_end" not in arguments_of_call(pipe):
        raise UserError(
            f"policy.pipeline: {type(pipe).__name__} tells nobody its latents (callback_on_step_end), so no judge can score them"
        )

    def note(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last[len(last) - bool(step) :] = [tensors["latents"].clone()]  # a call begins with step 0
        return tensors

    return {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": ["latents"]}


def unguided(accepts: Container[str], denoisers: int) -> dict[str, float]:
    """The arguments of a call without guidance, of those that it accepts; without a second expert, its scale is refused."""
    off = {**dict.fromkeys(GUIDANCE, 1.0), **BESIDE}
    return {name: value for name, value in off.items() if name in accepts and not (denoisers == 1 and name.endswith("_2"))}


def isolating(denoisers: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The denoisers that can leave out what is denoised beside the latent."""
    return [module for module in denoisers.values() if ALONE in inspect.signature(module.forward).parameters]


@contextmanager
def by_itself(denoisers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Denoisers of a video and its sound are asked of the video alone, as their guidance of the one by the other asks them."""
    alone = [module.register_forward_pre_hook(_alone, with_kwargs=True) for module in isolating(denoisers)]
    try:
        yield
    finally:
        for hook in alone:
            hook.remove()


def _alone(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, ALONE: True}


def named_rows(accepts: Container[str], prompts: Sequence[Any], classes: int | None) -> dict[str, Any]:
    """The argument by which a call is told its rows: ``prompt``, ``class_labels`` or ``batch_size``, the first that it takes.

    classes: how many there are, where that is known.

    Errors: UserError for a prompt that is no number of a class, where the call takes these.
    """
    if "prompt" in accepts:
        return {"prompt": prompts[0] if len(prompts) == 1 else list(prompts)}  # some pipelines take no list
    if "class_labels" in accepts:
        return {"class_labels": [_class_label(prompt, classes) for prompt in contents(prompts)]}
    return {"batch_size": len(prompts)} if "batch_size" in accepts else {}


def _beside_prompts(name: str, value: Any, rows: int) -> Any:
    """A negative prompt as often as there are prompts: pipelines take both as strings or both as lists."""
    return [value] * rows if name.startswith("negative_prompt") and isinstance(value, str) and rows > 1 else value


def classes_of(pipe: Any) -> int | None:
    """How many classes a pipeline's denoiser was built for; None where it has none, or does not say."""
    configs = [getattr(getattr(pipe, name, None), "config", {}) for name in DENOISERS]
    numbers = [config.get(key) for config in configs for key in ("num_embeds_ada_norm", "num_class_embeds")]
    return next((number for number in numbers if isinstance(number, int)), None)


def _class_label(prompt: Any, classes: int | None) -> int:
    text = str(prompt).strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS) or (classes is not None and int(text) >= classes):
        most = "or more" if classes is None else f"to {classes - 1}"
        raise UserError(f"prompts: got {text[:SHOWN]!r} for a pipeline that takes class_labels, takes the number of a class, 0 {most}")
    return int(text)


def arguments_of_call(pipe: Any) -> dict[str, Parameter]:
    """What a pipeline's own call takes, by name."""
    known, _ = parameters(inspect.unwrap(type(pipe).__call__))
    return {name: parameter for name, parameter in known.items() if name != "self"}


def refuse_arguments(pipe: Any, call: Mapping[str, Any], place: str) -> None:
    """Refuses what a pipeline's call does not take. place: what messages begin with.

    Errors: UserError for the first unknown argument, with the nearest, and for null, text or a fraction where only a number is taken.
    """
    known = arguments_of_call(pipe) if call else {}
    for name, value in call.items():
        if name not in known:
            near, takes = nearest(name, known), ", ".join(sorted(known))
            raise UserError(f"{place}.{name}: {type(pipe).__name__} takes no such argument{near}; it takes {takes}")
        if known[name].annotation in (int, float) and isinstance(value, (str, bool, int, float, type(None))):
            default = inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters[name].default
            if value is None and default is None:
                continue  # what diffusers annotates so is often left to the pipeline itself
            if mistake := fit(value, known[name]).mistake:
                raise UserError(f"{place}.{name}: {mistake}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of diffusers about its own arguments, of which a trial makes many."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


MEDIA = "image", "video", "mask_image", "control_image", "control_video"  # arguments that YAML cannot say


def one_line(error: BaseException) -> str:
    """An error as a row or a message holds it."""
    words = " ".join(str(error).split())[:240]
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"
