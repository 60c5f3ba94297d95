"""Where a denoiser looks for the words of a prompt, measured on any of them, and what it costs where subjects share a place.

Nothing here knows a model. Queries and keys are those that reach torch's own attention. Which keys are text is measured: in the first
layer of each shape those that stay what they are when the latent changes. Which of them are a word's is measured too: the words of a
subject are looked up among the ids that an encoder really got, what the encoder says at these places is changed, and the columns of the
prompt's embedding that change with it are the word's, whatever template, padding or order the pipeline puts around them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from mmalign.policies.pipelines.calls.calling import Caller
from mmalign.policies.pipelines.calls.interception import Finished, instead
from mmalign.policies.pipelines.calls.scheduler import Player
from mmalign.samplers import subjects
from mmalign.types import UserError

__all__: list[str] = []  # no policy

Shape = tuple[int, int]  # queries and keys of a layer


class Attended(NamedTuple):
    """The arguments of one attention. query, key: ``[B, heads, N, D]``. mask: of the attention, or None. scale: or None."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float | None

    @property
    def shape(self) -> Shape:
        return self.query.shape[-2], self.key.shape[-2]

    def to(self, columns: Tensor, places: Tensor) -> Tensor:
        """How much each of ``places`` attends to the keys ``columns``, the mean over heads: ``[B, columns, places]``."""
        query, key = self.query[..., places, :].float(), self.key.float()
        if key.shape[1] != query.shape[1]:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if self.scale is None else self.scale)
        if self.mask is not None:
            mask = self.mask[..., places, :] if self.mask.shape[-2] > 1 else self.mask
            logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
        return logits.softmax(-1)[..., columns].mean(1).transpose(1, 2)


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Attended] = []
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and self.inside:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
            if given["query"].ndim == 4:
                self.seen.append(Attended(given["query"], given["key"], given.get("attn_mask"), given.get("scale")))
        return func(*args, **(kwargs or {}))


@contextmanager
def attention(denoisers: Mapping[str, nn.Module]) -> Iterator[list[Attended]]:
    """While the block lasts, every attention that torch computes inside of a denoiser is added to the list that is yielded, in order."""

    def count(by: int) -> Callable[..., None]:
        def entered(*_: Any) -> None:
            watch.inside += by

        return entered

    with ExitStack() as stack:
        watch = stack.enter_context(_Watch())
        for denoiser in denoisers.values():
            stack.callback(denoiser.register_forward_pre_hook(count(1)).remove)
            stack.callback(denoiser.register_forward_hook(count(-1)).remove)
        yield watch.seen


def text_keys(one: Sequence[Attended], other: Sequence[Attended]) -> dict[Shape, Tensor]:
    """Shape of a layer -> the numbers of its keys that are text. one, other: the layers of two calls whose latents alone differ."""
    found = dict[Shape, Tensor]()
    for here, there in zip(one, other, strict=True):
        if here.shape not in found:
            apart = (here.key - there.key).abs().amax((0, 1, 3))
            found[here.shape] = torch.nonzero(apart <= 1e-5 * here.key.abs().max()).flatten()
    return {shape: keys for shape, keys in found.items() if len(keys)}


def _ids_of(text: str, tokenizer: Any) -> list[list[int]]:
    """Ids that a text may have inside of a prompt."""
    forms = [tokenizer(form, add_special_tokens=False).input_ids for form in (text, f" {text}")]
    return [list(ids) for ids in forms if ids]


def _places(ids: Sequence[int], words: Sequence[Sequence[int]]) -> list[int]:
    for some in words:
        for start in range(len(ids) - len(some) + 1):
            if list(ids[start : start + len(some)]) == list(some):
                return list(range(start, start + len(some)))
    return []


def columns(pipe: Any, call: Mapping[str, Any], prompt: str, subject: str) -> Tensor:
    """The numbers of the columns of a prompt's embedding that are a subject's words; and how many columns there are, at the end.

    Errors: UserError where no text encoder reads these words in the prompt, or the pipeline has no ``encode_prompt``.
    """
    if getattr(pipe, "encode_prompt", None) is None:
        raise UserError(f"subjects: {type(pipe).__name__} has no encode_prompt, so that no word of a prompt can be followed")
    changed = dict[str, list[int]]()
    plain = _embeddings(pipe, call, prompt, changed, note=subject)
    if not any(changed.values()):
        raise UserError(
            f"subjects: got {subject!r}, which no text encoder reads in the prompt {prompt[:80]!r}; takes words of it as they are"
        )
    moved = _embeddings(pipe, call, prompt, changed, note=None)
    for one, other in zip(plain, moved, strict=True):
        apart = (
            torch.nonzero((one - other).abs().flatten(2).amax(2).amax(0) > 0).flatten() if one.shape == other.shape else one.new_zeros(0)
        )
        if len(apart):
            return torch.cat([apart, torch.tensor([one.shape[1]], device=apart.device)])
    raise UserError(f"subjects: what {type(pipe).__name__} hands its denoiser does not depend on the words {subject!r} by place")


def _embeddings(pipe: Any, call: Mapping[str, Any], prompt: str, places: dict[str, list[int]], note: str | None) -> list[Tensor]:
    """The sequences that ``encode_prompt`` answers a call with. note: a subject, whose places in each encoder's ids are put into
    ``places``; None: what encoders say there is changed."""
    kept, own = list[Tensor](), type(pipe).encode_prompt.__get__(pipe)  # not one that answers from memory, around which this may run
    encoders = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder") and isinstance(part, nn.Module)}

    @functools.wraps(own)
    def spied(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        kept.extend(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim == 3)
        return result

    def reading(name: str) -> Callable[..., Any]:
        tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"), None)

        def read(module: nn.Module, args: Any, kwargs: Any) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if note is not None and tokenizer is not None and ids is not None and not places.get(name):
                places[name] = _places(ids[0].tolist(), _ids_of(note, tokenizer))

        return read

    def saying(name: str) -> Callable[..., Any]:
        def say(module: nn.Module, args: Any, output: Any) -> Any:
            at = places.get(name, [])
            if note is not None or not at:
                return output
            return tree_map(lambda leaf: _moved(leaf, at), output)

        return say

    with ExitStack() as stack:
        stack.enter_context(instead(pipe, "encode_prompt", spied))
        for name, encoder in encoders.items():
            stack.callback(encoder.register_forward_pre_hook(reading(name), with_kwargs=True).remove)
            stack.callback(encoder.register_forward_hook(saying(name)).remove)

        def leave(moment: Any) -> Tensor:
            raise Finished

        with torch.no_grad():
            Caller(pipe, dict(call)).until_finished([prompt], [0], Player(leave), [prompt], skip=1)
    return kept


def _moved(leaf: Any, at: list[int]) -> Any:
    if not isinstance(leaf, Tensor) or leaf.ndim != 3 or leaf.shape[1] <= max(at):
        return leaf
    shift = torch.zeros_like(leaf)
    shift[:, at] = 1
    return leaf + shift


class SubjectCost:
    """``samplers.subjects.entangled`` of a denoiser's attention at given latents, of each row, differentiable by the latents.

    pipe, call: the pipeline and what it is called with. ask: ``(prompts, x)`` -> whatever; a call of the denoiser, at the noise level
    that its caller has in mind, without guidance. What words are whose columns is found once for each prompt.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]):
        self.pipe, self.arguments, self.call = pipe, call, {name: value for name, value in call.items() if name != "prompt"}
        self.denoisers = Caller(pipe, self.call).denoisers
        self._columns: dict[tuple[str, str], Tensor] = {}
        self._text: dict[Shape, Tensor] = {}

    def __call__(self, ask: Callable[[list[str], Tensor], Any], prompts: list[str], named: Sequence[Sequence[str]], x: Tensor) -> Tensor:
        """``[R]``, 0 for rows of fewer than two subjects. named: the subjects of each row. x: ``[R, ...]``."""
        costs = [x[row].sum() * 0 for row in range(len(prompts))]
        for row, subjects_of_row in enumerate(named):
            if len(subjects_of_row) > 1:
                with attention(self.denoisers) as seen:
                    ask(prompts[row : row + 1], x[row : row + 1])
                costs[row] = self._of_row(ask, seen, prompts[row], subjects_of_row, x[row : row + 1])
        return torch.stack(costs)

    def _of_row(self, ask: Any, seen: Sequence[Attended], prompt: str, named: Sequence[str], x: Tensor) -> Tensor:
        words = [self._words(prompt, one) for one in named]
        length = int(words[0][-1])
        if not any(layer.shape in self._text for layer in seen):
            with torch.no_grad(), attention(self.denoisers) as others:
                ask([prompt], x.detach() + torch.linspace(0.5, 1.5, x.numel(), device=x.device).view_as(x).to(x))
            self._text |= {shape: keys for shape, keys in text_keys(seen, others).items() if len(keys) == length}
        sizes = dict[int, list[list[Tensor]]]()
        for layer in seen:
            if layer.shape in self._text:
                keys, (queries, count) = self._text[layer.shape], layer.shape
                own = torch.arange(queries, device=keys.device)
                places = own[~torch.isin(own, keys)] if queries == count and len(keys) < count else own
                by_subject = sizes.setdefault(len(places), [[] for _ in named])
                for maps, one in zip(by_subject, words, strict=True):
                    maps.append(subjects.sharpened(layer.to(keys[one[:-1]], places)[0]))
        if not sizes:
            name = type(self.pipe).__name__
            raise UserError(
                f"subjects: no attention of {name} goes to the {length} columns of its prompt, so that nothing can be said of words"
            )
        return torch.stack([subjects.entangled([torch.cat(maps) for maps in by_subject]) for by_subject in sizes.values()]).mean()

    def _words(self, prompt: str, subject: str) -> Tensor:
        key = prompt, subject
        if key not in self._columns:
            self._columns[key] = columns(self.pipe, self.call, *key)
        return self._columns[key]
