"""What stands between a pipeline and its parts for one call: its draws come again, finished steps cost nothing, latents are placed.

Each is a context manager that puts an attribute on one instance and takes it away again. No class is changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mmalign.types import UserError

DEVICE = "_device_of_this_call"


class Finished(Exception):
    """Leaves a pipeline's call as soon as what was asked for is known."""


# Where a pipeline runs


@contextmanager
def settled(pipe: Any, device: torch.device) -> Iterator[None]:
    """``pipe._execution_device`` is known while the block lasts: diffusers searches all modules for hooks whenever it is asked.

    A property has no place on an instance, so that the pipeline is of a sub-class for the time, of the same name.
    """
    own: Any = type(pipe)
    before = pipe.__dict__.get(DEVICE)
    pipe.__dict__[DEVICE], pipe.__class__ = device, _settled(own)
    try:
        yield
    finally:
        pipe.__class__ = own
        del pipe.__dict__[DEVICE]
        if before is not None:
            pipe.__dict__[DEVICE] = before


@functools.cache
def _settled(own: Any) -> type:
    places = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (own,), {**places, "_execution_device": property(lambda pipe: pipe.__dict__[DEVICE])})


# Randomness


@contextmanager
def seeded(pipe: Any, seeds: list[int], device: torch.device) -> Iterator[None]:
    """Draws that a pipeline does not make from the rows' generators, or not row by row, come again at replay.

    An image that the VAE encodes gets the same noise in every row and call: pipelines take it from the first row's generator
    where rows share an image, so that it would depend on the batch. What is left is the global generator, which is seeded and
    put back: its draws come again where a call has the same rows. device: where the pipeline runs.
    """
    vae = getattr(pipe, "vae", None)
    own: Any = getattr(vae, "encode", None)
    devices = [device] if device.type == "cuda" else []

    def encode(*args: Any, **kwargs: Any) -> Any:
        encoded = own(*args, **kwargs)
        spread: Any = getattr(encoded, "latent_dist", None)
        if isinstance(getattr(spread, "std", None), Tensor):
            noise = torch.randn(spread.mean.shape[1:], generator=torch.Generator().manual_seed(0)).to(spread.mean)
            spread.sample = lambda generator=None: spread.mean + spread.std * noise
        return encoded

    with torch.random.fork_rng(devices=devices):
        seed = sum(seeds) % 2**63
        torch.default_generator.manual_seed(seed) if device.type == "cpu" else torch.manual_seed(seed)
        before = None if own is None else vae.__dict__.get("encode")
        if own is not None:
            vae.__dict__["encode"] = encode
        try:
            yield
        finally:
            if own is not None:
                del vae.__dict__["encode"]
            if before is not None:
                vae.__dict__["encode"] = before


# Steps that are over


FOR_ITS_SHAPE: ContextVar[bool] = ContextVar("for_its_shape", default=False)
"""Whether a module runs for the shape of its answer alone, in a step that is over: what it says there is nobody's."""


def _alone(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    FOR_ITS_SHAPE.set(True)
    return own(*args, **kwargs)


@dataclass(frozen=True)
class _Shape:
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@contextmanager
def skipped(modules: Mapping[str, nn.Module], over: Callable[[], bool], rows: int, shapes: dict[Any, Any]) -> Iterator[None]:
    """While ``over()``, the modules answer zeros of the right shape instead of running.

    A shape is learnt by running once for each new shape of input; ``shapes`` keeps them between calls. The stand-in is put
    where torch looks for a compiled forward, so that hooks (sharding, offloading) stay out of what is skipped.
    """

    def stand_in(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not over():
                return own(*args, **kwargs)
            tensor_shapes = [leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            key = (name, rows, len(tensor_shapes), next((shape for shape in tensor_shapes if len(shape) >= 3), None))
            if key not in shapes:
                with torch.no_grad():
                    answer = copy_context().run(_alone, own, *args, **kwargs)
                shapes[key] = tree_map(lambda v: _Shape(v.shape, v.dtype, v.device) if isinstance(v, Tensor) else v, answer)
            return tree_map(lambda v: torch.zeros(v.shape, dtype=v.dtype, device=v.device) if isinstance(v, _Shape) else v, shapes[key])

        return call

    with instead_of_calls(modules, stand_in):
        yield


@contextmanager
def instead_of_calls(modules: Mapping[str, nn.Module], stand_in: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """``stand_in(name, own call)`` in place of each module's call. It is put where torch looks for a compiled forward."""
    before = {name: module.__dict__.pop("_compiled_call_impl", None) for name, module in modules.items()}
    for name, module in modules.items():
        module.__dict__["_compiled_call_impl"] = stand_in(name, before[name] or module._call_impl)
    try:
        yield
    finally:
        for name, module in modules.items():
            del module.__dict__["_compiled_call_impl"]
            if before[name] is not None:
                module.__dict__["_compiled_call_impl"] = before[name]


@contextmanager
def held(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """What the modules answer has no graph, so that a gradient passes by them."""

    def stand_in(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                return own(*args, **kwargs)

        return call

    with instead_of_calls(modules, stand_in):
        yield


# Where the first latent comes from


class Part(NamedTuple):
    """What a scheduler is shown of a row of latents: the numbers ``where [N]`` of its ``size``, flat, as ``shape``. The others are given,
    as the first frame of a video that goes on from an image."""

    where: Tensor
    size: int
    shape: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """``[R, ...]`` of whole rows."""
        return whole.flatten(1)[:, self.where.to(whole.device)].unflatten(1, self.shape)

    def put(self, whole: Tensor, x: Tensor) -> Tensor:
        """Whole rows with ``x [R, ...]`` in this part; with a graph from ``x`` on."""
        return whole.flatten(1).index_copy(1, self.where.to(whole.device), x.flatten(1).to(whole)).view_as(whole)


class Place(NamedTuple):
    """The ``number``-th call of one of the pipeline's methods, and the item of what it returns (None: all of it).

    part: of that, what is the latent to the scheduler; None: all of it.
    """

    method: str
    number: int
    item: int | None
    part: Part | None = None


def _makers(pipe: Any) -> list[str]:
    """Methods that may make the first latent: ``prepare_latents``, ``_pack_latents`` and their kin."""
    names = [name for name in dir(type(pipe)) if name.startswith("prepare_") or "latents" in name]
    return [name for name in names if callable(getattr(type(pipe), name, None)) and not name.startswith("decode")]


class Made(NamedTuple):
    """The latents that a pipeline's methods have made in a call, and where."""

    latents: list[tuple[Place, Tensor]]

    def place(self, x: Tensor) -> Place | None:
        """Where this very latent was made, the last such place; None for nowhere."""
        same = [place for place, value in self.latents if value is x]
        equal = [place for place, value in self.latents if value.shape == x.shape and torch.equal(value.to(x), x)]
        return next(reversed([*equal, *same]), None)

    def larger(self, x: Tensor) -> list[tuple[Place, Tensor]]:
        """What was made of more numbers than ``x``, for as many rows: ``x`` may be a part of it. The first come first: what is made behind
        the denoiser's call is nothing that it has seen."""
        alike = [(place, value) for place, value in self.latents if value.is_floating_point() and value.ndim >= 3 and len(value) == len(x)]
        return [(place, value) for place, value in alike if value.numel() > x.numel()]


@contextmanager
def watched(pipe: Any) -> Iterator[Made]:
    """Yields what the pipeline's methods make meanwhile."""
    made = Made([])

    def note(name: str, number: int, result: Any) -> Any:
        items = list(enumerate(result)) if isinstance(result, (tuple, list)) else [(None, result)]
        made.latents.extend((Place(name, number, item), value) for item, value in items if isinstance(value, Tensor))
        return result

    with _wrapped(pipe, note):
        yield made


@contextmanager
def placed(pipe: Any, place: Place, x: Tensor) -> Iterator[None]:
    """``x`` in place of the latent that the pipeline makes. All else that the method does and returns stays."""

    def put(name: str, number: int, result: Any) -> Any:
        if (name, number) != place[:2]:
            return result
        own = result if place.item is None else result[place.item]
        takes = own.shape if place.part is None else (len(own), *place.part.shape)
        if tuple(x.shape) != tuple(takes):
            raise UserError(f"latents: got shape {list(x.shape)}, {type(pipe).__name__} takes {list(takes)}")
        whole = x.to(own) if place.part is None else place.part.put(own, x)
        if place.item is None:
            return whole
        return type(result)(whole if item == place.item else value for item, value in enumerate(result))

    with _wrapped(pipe, put):
        yield


@contextmanager
def graphed(pipe: Any) -> Iterator[None]:
    """The latents that a pipeline makes first have a gradient, so that its first step has a graph from the latent on."""

    def mark(name: str, number: int, result: Any) -> Any:
        return tree_map(lambda v: _leaf(v) if isinstance(v, Tensor) and v.is_floating_point() else v, result)

    with _wrapped(pipe, mark):
        yield


def _leaf(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.detach().requires_grad_().clone()


@contextmanager
def _wrapped(pipe: Any, change: Callable[[str, int, Any], Any]) -> Iterator[None]:
    counts: dict[str, int] = {}

    def wrap(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            number = counts[name] = counts.get(name, -1) + 1
            return change(name, number, own(*args, **kwargs))

        return call

    with ExitStack() as stack:
        for name in _makers(pipe):
            stack.enter_context(instead(pipe, name, wrap(name, getattr(pipe, name))))
        yield


@contextmanager
def instead(pipe: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of the instance while the block lasts; what was there before, a block around this one's perhaps, comes back."""
    before = pipe.__dict__.get(name)
    pipe.__dict__[name] = value
    try:
        yield
    finally:
        del pipe.__dict__[name]
        if before is not None:
            pipe.__dict__[name] = before
