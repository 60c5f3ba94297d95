"""Hidden states of completions, with every prompt computed once for all rows that share it.

The prompts run with a cache; their rows go on from it with its graph, and only the completions run behind it: the same
numbers and gradients as rows that repeat their prompt, at a fraction of the work. ``run`` is that, or the plain forward for models
whose caches cannot be repeated; ``transformers.py`` tries both on a tiny batch before it trusts the first.

Images and videos are part of a prompt, so they are encoded, and their tokens run, once too. A model that places pictures on axes of
their own (multimodal rotary positions) finds the places of a prompt itself, and says how far the next word's is from its number
(``rope_deltas``); completions go on from there, each row from its own prompt's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sequences:
    """Some rows as token ids.

    prompts: P distinct prompts, ``[L]`` int64 each. which: ``[R]`` the prompt of each row. tokens: ``[R, T]`` completions, filled up
    with anything. lengths: ``[R]`` tokens of each. extras: for each prompt, further inputs of the backbone beside its ids: those with a
    number for each token ``[1, L]`` (``..._token_type_ids``), and others (pixels), which go side by side along their first dimension;
    empty where there are none. read: ``[R, T]``, what is read of a completion in place of its own tokens (teacher forcing); None: those.
    allowed: ``[R, T, W]`` uint8, the words that each token was drawn from, as ``likely_words.packed`` has them; None: all.
    inside: of each row, further inputs of all of it where pictures are shown in its completion; empty where there are none.
    """

    prompts: Sequence[Tensor]
    which: Tensor
    tokens: Tensor
    lengths: Tensor
    extras: Sequence[Mapping[str, Tensor]] = ()
    read: Tensor | None = None
    allowed: Tensor | None = None
    inside: Sequence[Mapping[str, Tensor]] = ()

    def __len__(self) -> int:
        return len(self.which)


class Prefilled(NamedTuple):
    """Prompts that have run. cache: theirs. mask: ``[P, L]`` real tokens. last: ``[P, H]`` hidden states that the first token follows.

    shift: ``[P, 1]``, from the number of a next token to its place.
    """

    cache: Any
    mask: Tensor
    last: Tensor
    shift: Tensor


ANSWER_TYPE = {"paligemma": 1}
"""The token type of an answer, by model type, where it is not 0: PaliGemma's prompts see all of themselves, its answers what is before."""
ONE_BLOCK = frozenset({"molmo2"})
"""Model types all of whose pictures see each other, however far apart they stand."""
FIRST_PLACE = {"paligemma": 1}
"""The position of the first token, by model type, where it is not 0."""


def moved(rows: Sequences, device: torch.device) -> Sequences:
    """The same rows where a model is."""
    return Sequences(
        prompts=[prompt.to(device) for prompt in rows.prompts],
        which=rows.which.to(device),
        tokens=rows.tokens.to(device),
        lengths=rows.lengths.to(device),
        extras=[{name: value.to(device) for name, value in inputs.items()} for inputs in rows.extras],
        read=None if rows.read is None else rows.read.to(device),
        inside=[{name: value.to(device) for name, value in inputs.items()} for inputs in rows.inside],
    )


def run(backbone: nn.Module, rows: Sequences, *, shared: bool = True) -> Tensor:
    """Hidden states ``[R, T, H]``: at ``[r, t]`` the one that predicts token t of row r. Cells beyond a row's length hold anything.

    Rows with pictures in their completions, and those beside them, run each with its own prompt: a picture is no word to go on with.
    """
    return _shared(backbone, rows) if shared and not rows.inside else _plain(backbone, rows)


def prefill(backbone: nn.Module, prompts: Sequence[Tensor], extras: Sequence[Mapping[str, Tensor]], device: torch.device) -> Prefilled:
    """Runs prompts, filled up on the left, with a cache that keeps all of them (a window is then the mask's affair)."""
    from transformers import DynamicCache

    ids, mask = left_filled(prompts, device)
    cache = DynamicCache()
    arguments = {**_mask_and_positions(backbone, mask, _positions(mask), extras), "past_key_values": cache}
    arguments |= together(extras, [len(prompt) for prompt in prompts], ids.shape[1], left=True)
    output = backbone(input_ids=ids, use_cache=True, return_dict=True, **arguments)
    return Prefilled(output.past_key_values, mask, output.last_hidden_state[:, -1], _shift(backbone, mask, arguments))


def follow(backbone: nn.Module, cache: Any, mask: Tensor, ids: Tensor, shift: Tensor) -> Tensor:
    """Hidden states ``[R, T, H]`` of tokens ``[R, T]`` behind a cache. mask: ``[R, L + T]``, of the cache's tokens and of these.

    shift: ``[R, 1]``, as of ``Prefilled``, of each row.
    """
    places = _positions(mask)[:, -ids.shape[1] :] + shift
    arguments = {**_mask_and_positions(backbone, mask, places), "past_key_values": cache, "use_cache": True, "return_dict": True}
    states: Tensor = backbone(input_ids=ids, **arguments).last_hidden_state
    return states


def _shared(backbone: nn.Module, rows: Sequences) -> Tensor:
    """Prompts run up to the last layer's keys and values; their last token, whose state is wanted, runs again with each row."""
    from mmalign.policies.language.models import caches

    if any(rows.extras):
        return _after_media(backbone, rows)
    device, which = rows.tokens.device, rows.which
    ids, mask = left_filled(rows.prompts, device)
    cache = caches.filled(backbone, {"input_ids": ids, **_mask_and_positions(backbone, mask, _positions(mask))})
    cache.crop(-1)
    tokens = torch.cat([ids[which, -1:], rows.tokens[:, :-1]], dim=1)
    real = torch.arange(tokens.shape[1], device=device) < rows.lengths.unsqueeze(1)
    mask = torch.cat([mask[which, :-1], real.to(mask)], dim=1)
    return follow(backbone, caches.go_on(cache, which), mask, tokens, mask.new_zeros((len(which), 1)))


def _after_media(backbone: nn.Module, rows: Sequences) -> Tensor:
    """The same of prompts with pictures, which may end in one: their last token is no word that could run again."""
    from mmalign.policies.language.models import caches

    device = rows.tokens.device
    start = prefill(backbone, rows.prompts, rows.extras, device)
    first = start.last[rows.which].unsqueeze(1)
    steps = rows.tokens.shape[1] - 1
    if steps == 0:
        return first
    real = torch.arange(steps, device=device) < (rows.lengths - 1).unsqueeze(1)
    mask = torch.cat([start.mask[rows.which], real.to(start.mask)], dim=1)
    behind = follow(backbone, caches.go_on(start.cache, rows.which), mask, rows.tokens[:, :-1], start.shift[rows.which])
    return torch.cat([first, behind], dim=1)


def _plain(backbone: nn.Module, rows: Sequences) -> Tensor:
    """Every row with its prompt, filled up on the right."""
    device, width = rows.tokens.device, rows.tokens.shape[1]
    sizes = torch.tensor([len(prompt) for prompt in rows.prompts], device=device)[rows.which]
    ids = torch.zeros((len(rows), int((sizes + rows.lengths).max())), dtype=torch.int64, device=device)
    mask = torch.arange(ids.shape[1], device=device) < (sizes + rows.lengths).unsqueeze(1)
    for row, (which, size, length) in enumerate(zip(rows.which.tolist(), sizes.tolist(), rows.lengths.tolist(), strict=True)):
        ids[row, :size] = rows.prompts[which].to(device)
        ids[row, size : size + length] = rows.tokens[row, :length]
    extras = [rows.extras[prompt] for prompt in rows.which.tolist()] if rows.extras else []
    known = sizes.tolist()
    if rows.inside:
        extras = [inputs or (extras[row] if extras else {}) for row, inputs in enumerate(rows.inside)]
        known = [size + length * bool(inputs) for size, length, inputs in zip(known, rows.lengths.tolist(), rows.inside, strict=True)]
    arguments = _mask_and_positions(backbone, mask.long(), torch.arange(ids.shape[1], device=device).expand_as(ids), extras)
    arguments |= together(extras, known, ids.shape[1], left=False, answer=ANSWER_TYPE.get(_kind(backbone), 0))
    states = backbone(input_ids=ids, **arguments, use_cache=False, return_dict=True).last_hidden_state
    places = (sizes.unsqueeze(1) - 1 + torch.arange(width, device=device)).clamp(max=ids.shape[1] - 1)
    completion_states: Tensor = states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
    return completion_states


def left_filled(prompts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, ``[P, L]`` int64 each, of prompts that end in the same column."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.int64, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt.to(device)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def together(extras: Sequence[Mapping[str, Tensor]], sizes: Sequence[int], width: int, *, left: bool, answer: int = 0) -> dict[str, Tensor]:
    """Further inputs of several rows as those of one call.

    sizes: tokens of each row's prompt. width: columns of the call. left: whether prompts end in the last column, or begin in the first;
    what follows them then has the token type ``answer``. Other inputs are filled up with zeros where they differ in shape (fewer tiles of
    an image, fewer images of a row), which is what processors do.
    """
    call_inputs: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for inputs in extras for name in inputs):
        if not name.endswith("token_type_ids"):
            call_inputs[name] = _side_by_side([inputs[name] for inputs in extras if name in inputs])
            continue
        like = next(inputs[name] for inputs in extras if name in inputs)
        table = like.new_full((len(extras), width), 0 if left else answer)
        for row, (inputs, size) in enumerate(zip(extras, sizes, strict=True)):
            at = slice(width - size, width) if left else slice(0, size)
            table[row, at] = inputs[name][0] if name in inputs else 0
        call_inputs[name] = table
    return call_inputs


def _side_by_side(some: Sequence[Tensor]) -> Tensor:
    """Tensors behind each other along their first dimension."""
    shapes = [value.shape[1:] for value in some]
    if len(set(shapes)) == 1:
        return torch.cat(list(some))
    widest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    whole = some[0].new_zeros((sum(len(value) for value in some), *widest))
    start = 0
    for value in some:
        inside = (slice(start, start + len(value)), *(slice(0, size) for size in value.shape[1:]))
        whole[inside] = value
        start += len(value)
    return whole


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _mask_and_positions(
    backbone: nn.Module, mask: Tensor, places: Tensor, extras: Sequence[Mapping[str, Tensor]] = ()
) -> dict[str, Tensor]:
    """Mask and positions, as far as the backbone takes them, and does not have to find them itself."""
    parameters = inspect.signature(backbone.forward).parameters
    own = _finds_places(backbone) and any(name.endswith("grid_thw") for inputs in extras for name in inputs)
    positions = {"position_ids": places + FIRST_PLACE.get(_kind(backbone), 0)} if "position_ids" in parameters and not own else {}
    return {"attention_mask": mask, **positions}


def _shift(backbone: nn.Module, mask: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """How far the place of a prompt's next token is from its number, ``[P, 1]``."""
    own = _finds_places(backbone) and "position_ids" not in arguments
    return backbone.rope_deltas.to(mask) if own else torch.zeros_like(mask[:, :1])  # type: ignore[operator, union-attr, return-value]


def _finds_places(backbone: nn.Module) -> bool:
    """Whether a model has rotary positions of its own for pictures."""
    return "rope_deltas" in vars(backbone)  # None before the first prompt


def _kind(backbone: nn.Module) -> str:
    return str(getattr(getattr(backbone, "config", None), "model_type", ""))
