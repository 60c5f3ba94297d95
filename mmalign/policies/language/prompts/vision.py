"""Images and videos of prompts: read when they are wanted, put through the model's own processor, and never parted from their tokens.

A prompt keeps its media by reference, the tokens that stand for each of them, and a hash of what the model is given (ids and pixels).
Pixels are made again when they are needed, of whole prompts, and compared with that hash: what a rollout was conditioned on is what
it is scored and trained on, or the run stops. No tensor of pixels is ever cut: a prompt that has to be shortened is read anew
without the media that do not fit (``budget.py``).
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from mmalign.media import KINDS, ONE, Limits, Medium, canonical_bytes, footage, named, picture
from mmalign.policies.language.models.prefixes import ANSWER_TYPE, ONE_BLOCK
from mmalign.policies.language.prompts.encoded_prompts import Prompt, Span
from mmalign.policies.language.prompts.templates import adds_special
from mmalign.types import UserError

WORDS = frozenset({"input_ids", "attention_mask", "labels"})
KEPT = 256 * 2**20  # bytes of pixels that are kept for the next time


class Vision:
    """A processor, and what is kept of what it made.

    model: that it is for. frames: ids of tokens that stand around pixels (no completion says them), which belong to them. limits: of files.
    """

    def __init__(self, processor: Any, model: Any, *, frames: frozenset[int], limits: Limits):
        self.processor, self.frames, self.limits, self.dtype = processor, frames, limits, model.dtype
        self.takes = frozenset(inspect.signature(model.base_model.forward).parameters)
        self.placeholders = placeholders(model)
        self.answer = ANSWER_TYPE.get(model.config.model_type, 0)
        self.at_once = bool(self.answer) or model.config.model_type in ONE_BLOCK  # what stands before a picture sees it
        parts = [getattr(model.config, part, None) is not None for part in ("vq_config", "vision_config")]
        self.by_codes = parts == [True, False]  # filled up with zeros, other sizes are other codes
        size = getattr(getattr(model.config, "vision_config", None), "image_size", None) or (48, 40)  # of models that take any
        self.height, self.width = (int(side) for side in ((size, size) if isinstance(size, int) else size))
        readers = {"image": "image_processor", "video": "video_processor"}
        tokens = {kind: getattr(processor, f"{kind}_token", None) for kind, reader in readers.items() if getattr(processor, reader, None)}
        self.tokens: dict[str, str] = {kind: str(token) for kind, token in tokens.items() if token is not None}
        self.kept: OrderedDict[Any, dict[str, Tensor]] = OrderedDict()
        self.along: dict[Any, dict[str, int]] = {}  # shapes of pixels, and of those behind them -> the dimension that they are joined along

    def laid_out(self, text: str) -> str:
        """Words alone as the processor hands them to its tokenizer: some put BOS before them."""
        layout = getattr(self.processor, "prepare_inputs_layout", None)
        return text if layout is None else str(layout(text=[text])[1][0])

    def read(self, text: str, media: Sequence[Medium], ids: Sequence[int] = ()) -> Prompt:
        """A prompt with its media; ``ids`` are those of a text without any.

        Errors: UserError where the text holds more or fewer placeholders than there are media, media that cannot be read or that the
        processor does not take.
        """
        self._refuse_counts(text, media)
        if media and self.by_codes:
            why = "this model's codes of an image depend on the images beside it in a call"
            raise UserError(f"prompt: holds {ONE[media[0].kind]}, and {why}; takes words alone")
        if not media:
            if odd := self.placeholders & set(ids):
                raise UserError(f"prompt: holds the token {min(odd)}, which stands for pixels, and no image or video")
            types = {"token_type_ids": (0,) * len(ids)} if "token_type_ids" in self.takes else {}
            return Prompt(tuple(ids), text, types=types, answer=self.answer)
        features = self.process(text, media)
        tokens = features["input_ids"][0].tolist()
        self._refuse_unmarked(tokens, media)
        spans = self._spans(features, tokens, media)
        inside = sum(token in self.placeholders for first, last in spans for token in tokens[first:last])
        if inside != sum(token in self.placeholders for token in tokens):
            raise UserError("prompt: holds tokens that stand for pixels outside of its images and videos; takes media as parts")
        pixels = self._pixels(features)
        types = {name: tuple(features[name][0].tolist()) for name in features if _by_token(name) and name in self.takes}
        self._keep(text, media, pixels)
        return Prompt(tuple(tokens), text, tuple(media), tuple(spans), types, _digest(tokens, pixels), answer=self.answer)

    def read_later(self, text: str, media: Sequence[Medium]) -> Prompt:
        """A reply with its media, behind what was answered already. Errors: UserError, as ``read``, and where words before see it."""
        if self.at_once:
            why = "what stands before a picture sees it (attention both ways), and what was answered already has not"
            raise UserError(f"{type(self.processor).__name__}: {why}; takes replies in words")
        return self.read(text, media)

    def inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        """What the model takes beside the ids of a prompt. Errors: UserError where it is not what the prompt was read with."""
        types = {name: torch.tensor([values]) for name, values in prompt.types.items()}
        if prompt.parts:
            return {**self._together([part for part in prompt.parts if part.media]), **types}
        return {**self._again(prompt), **types} if prompt.media else types

    def _again(self, prompt: Prompt) -> dict[str, Tensor]:
        """The pixels of a prompt, made again where they are not kept."""
        key = _key(prompt.text, prompt.media)
        if key not in self.kept:
            features = self.process(prompt.text, prompt.media)
            pixels = self._pixels(features)
            if _digest(features["input_ids"][0].tolist(), pixels) != prompt.digest:
                names = ", ".join(_label(medium) for medium in prompt.media)
                raise UserError(
                    f"media: {names} changed since a rollout read it, so training would see another picture; takes files that stay"
                )
            self._keep(prompt.text, prompt.media, pixels)
        self.kept.move_to_end(key)
        return self.kept[key]

    def _together(self, parts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Pixels of what was read apart as those of one conversation, in the order of its pictures.

        Errors: UserError where the processor itself makes other pixels, or another number of tokens, of them together.
        """
        pixels = self._again(parts[0])
        for count, part in enumerate(parts[1:], start=2):
            more = self._again(part)
            shapes = tuple((name, tuple(value.shape)) for some in (pixels, more) for name, value in some.items())
            if shapes not in self.along:
                self.along[shapes] = self._compared(parts[:count], pixels, more)
            pixels = {name: behind(value, more[name], self.along[shapes][name]) for name, value in pixels.items()}
        return pixels

    def _compared(self, parts: Sequence[Prompt], pixels: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, int]:
        """The dimensions along which the processor puts ``more`` behind ``pixels``, by what it makes of all media in one call."""
        features = self.process("\n".join(part.text for part in parts), [medium for part in parts for medium in part.media])
        whole, ids = self._pixels(features), features["input_ids"][0].tolist()
        count = [sum(token in self.placeholders for token in some) for some in (ids, [token for part in parts for token in part.ids])]
        along = {name: joined_along(pixels[name], more[name], value) for name, value in whole.items() if name in pixels and name in more}
        if count[0] != count[1] or not whole.keys() == along.keys() == pixels.keys() or any(place is None for place in along.values()):
            name = type(self.processor).__name__
            raise UserError(f"{name}: reads a picture otherwise once another stands behind it; takes a model that reads each as it is")
        return {name: place for name, place in along.items() if place is not None}

    def changed(self, prompt: Prompt, change: Any) -> Prompt:
        """A prompt whose media are changed, before the same tokens; one without any stays as it is."""
        if not prompt.media:
            return prompt
        media = tuple(medium._replace(change=change) for medium in prompt.media)
        features = self.process(prompt.text, media)
        ids, pixels = features["input_ids"][0].tolist(), self._pixels(features)
        if sum(token in self.placeholders for token in ids) != sum(token in self.placeholders for token in prompt.ids):
            raise UserError(
                f"{type(self.processor).__name__}: makes other tokens of a changed picture of the same size; takes another ablation"
            )
        self._keep(prompt.text, media, pixels)
        return replace(prompt, media=media, digest=_digest(ids, pixels))

    def example(self) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """A prompt with a small picture, as ids and further inputs, to try a model on; none where it takes no images."""
        if "image" not in self.tokens or self.by_codes:
            return []
        picture = torch.linspace(0, 1, 3 * self.height * self.width).view(3, self.height, self.width)
        prompt = self.read(f"{self.tokens['image']}", [Medium("image", picture)])
        return [(torch.tensor(prompt.ids), self.inputs(prompt))]

    # ---- inside

    def _refuse_counts(self, text: str, media: Sequence[Medium]) -> None:
        counts = Counter(medium.kind for medium in media)
        for kind in KINDS:
            token = self.tokens.get(kind)
            if token is None:
                if counts[kind]:
                    raise UserError(f"prompt: holds {ONE[kind]}, which {type(self.processor).__name__} does not take")
            elif (marks := text.count(token)) != counts[kind]:
                raise UserError(f"prompt: holds {marks} placeholders {token!r} and {counts[kind]} {kind}s; takes as many as there are")

    def _refuse_unmarked(self, ids: Sequence[int], media: Sequence[Medium]) -> None:
        """UserError where the tokenizer cut a medium's placeholder into words, so that the model would see nothing of it."""
        if self.placeholders.isdisjoint(ids):
            token, words = self.tokens[media[0].kind], self.processor.tokenizer
            cut = ", ".join(map(repr, words.convert_ids_to_tokens(words(token, add_special_tokens=False)["input_ids"])))
            raise UserError(
                f"policy.tokenizer: reads {token!r} as {cut}, and the model's {media[0].kind}s are the ids {sorted(self.placeholders)}; "
                f"takes a tokenizer that has it as one special token"
            )

    def process(self, text: str, media: Sequence[Medium]) -> Any:
        """What the processor makes of a text and its media. Errors: UserError for media that it does not take."""
        arguments: dict[str, Any] = {}
        if pictures := [self.picture(medium) for medium in media if medium.kind == "image"]:
            arguments["images"] = [pictures]  # those of one prompt: some processors cut a single image finer than several
        if clips := [medium for medium in media if medium.kind == "video"]:
            arguments |= self._clips(clips)
        if not adds_special(self.processor.tokenizer, text):
            arguments["add_special_tokens"] = False
        try:
            return self.processor(
                text=[text], **arguments, return_tensors="pt", return_offsets_mapping=True, return_text_replacement_offsets=True,
                return_mm_token_type_ids=True,
            )  # fmt: skip
        except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
            names = ", ".join(_label(medium) for medium in media)
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{type(self.processor).__name__}: refuses {names}: {why}") from error

    def picture(self, medium: Medium) -> Any:
        """An image as PIL has it, changed where that was asked for."""
        image = picture(medium.source, self.limits)
        return image if medium.change is None else medium.change(image)

    def _clips(self, media: Sequence[Medium]) -> dict[str, Any]:
        clips = [footage(medium.source, self.limits) for medium in media]
        frames = [
            clip.frames if medium.change is None else medium.change.frames(clip.frames) for medium, clip in zip(media, clips, strict=True)
        ]
        metadata = [
            {
                "total_num_frames": clip.length, "fps": clip.rate, "frames_indices": clip.places, "height": clip.frames.shape[2],
                "width": clip.frames.shape[3], "duration": None if clip.rate is None else clip.length / clip.rate,
            }
            for clip in clips
        ]  # fmt: skip
        options = {"do_sample_frames": False, "do_convert_rgb": False, "video_metadata": metadata}  # they are chosen, and RGB
        return {"videos": frames, "videos_kwargs": options}

    def _pixels(self, features: Any) -> dict[str, Tensor]:
        """The inputs that are no table of tokens; numbers with a point in the model's type."""
        tensors = {name: torch.as_tensor(value) for name, value in features.items() if name in self.takes - WORDS and not _by_token(name)}
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in tensors.items()}

    def _spans(self, features: Any, ids: Sequence[int], media: Sequence[Medium]) -> list[Span]:
        """The tokens of each medium, by what the processor says that it wrote for it."""
        replacements = features.get("text_replacement_offsets")
        if replacements is None or features.get("offset_mapping") is None:
            return self._runs(ids, media)
        letters = [(int(first), int(last)) for first, last in features["offset_mapping"][0].tolist()]
        spans = []
        for replacement in replacements[0]:
            start, end = replacement["new_span"]
            places = [place for place, (first, last) in enumerate(letters) if first < end and start < last]
            spans.append((places[0], places[-1] + 1))
        return self._framed(ids, spans)

    def _framed(self, ids: Sequence[int], spans: Sequence[Span]) -> list[Span]:
        """Spans with the token before and behind them, where those only frame pixels and are nobody else's."""
        occupied = {place for first, last in spans for place in range(first, last)}
        framed = []
        for first, last in spans:
            if first > 0 and first - 1 not in occupied and ids[first - 1] in self.frames:
                first -= 1
            if last < len(ids) and last not in occupied and ids[last] in self.frames:
                last += 1
            occupied |= {first, last - 1}
            framed.append((first, last))
        return framed

    def _runs(self, ids: Sequence[int], media: Sequence[Medium]) -> list[Span]:
        """The same where the processor does not say it: one medium's are all of them, several media are one run each."""
        places = [place for place, token in enumerate(ids) if token in self.placeholders]
        starts = [place for place in places if place - 1 not in set(places)]
        if not places or len(media) not in (1, len(starts)):
            raise UserError(
                f"{type(self.processor).__name__}: does not say which tokens are which medium's; takes prompts of one image or video"
            )
        if len(media) == 1:
            return [(places[0], places[-1] + 1)]
        ends = [place + 1 for place in places if place + 1 not in set(places)]
        return list(zip(starts, ends, strict=True))

    def _keep(self, text: str, media: Sequence[Medium], pixels: dict[str, Tensor]) -> None:
        self.kept[_key(text, media)] = pixels
        while len(self.kept) > 1 and sum(_size(value) for value in self.kept.values()) > KEPT:
            self.kept.popitem(last=False)


class Inputs(Sequence[Mapping[str, Tensor]]):
    """What a model takes beside the ids of some prompts, made when it is asked for."""

    def __init__(self, vision: Vision, prompts: Sequence[Prompt]):
        self.vision, self.prompts = vision, tuple(prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, place: int) -> dict[str, Tensor]: ...

    @overload
    def __getitem__(self, place: slice) -> Inputs: ...

    def __getitem__(self, place: int | slice) -> dict[str, Tensor] | Inputs:
        if isinstance(place, slice):
            return Inputs(self.vision, self.prompts[place])
        return self.vision.inputs(self.prompts[place])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.vision.inputs(prompt) for prompt in self.prompts)


def placeholders(model: Any) -> frozenset[int]:
    """Ids that stand for pixels."""
    names = [f"{kind}_token_{word}" for kind in KINDS for word in ("id", "index")]
    ids = [getattr(model.config, name, None) for name in names]
    return frozenset(int(token) for token in ids if isinstance(token, int))


def inputs_of(vision: Vision | None, prompts: Sequence[Prompt]) -> Sequence[Mapping[str, Tensor]]:
    """Further inputs of some prompts, none where a model takes words alone."""
    return Inputs(vision, prompts) if vision is not None and any(prompt.media or prompt.types for prompt in prompts) else ()


def behind(first: Tensor, second: Tensor, along: int) -> Tensor:
    """Two tensors as one along a dimension, filled up with zeros in the others."""
    sizes = [max(pair) for pair in zip(first.shape, second.shape, strict=True)]
    filled = []
    for part in (first, second):
        whole = part.new_zeros([part.shape[place] if place == along else size for place, size in enumerate(sizes)])
        whole[tuple(slice(0, size) for size in part.shape)] = part
        filled.append(whole)
    return torch.cat(filled, along)


def joined_along(first: Tensor, second: Tensor, whole: Tensor) -> int | None:
    """The dimension along which two tensors are ``whole``, up to one step of eight bits in pixels; None for none."""
    if not first.ndim == second.ndim == whole.ndim:
        return None
    for place in range(whole.ndim):
        if whole.shape[place] == first.shape[place] + second.shape[place]:
            both = behind(first, second, place)
            if both.shape == whole.shape and torch.allclose(both.double(), whole.double(), rtol=0, atol=0.02):
                return place
    return None


def _by_token(name: str) -> bool:
    return name.endswith("token_type_ids")


def _key(text: str, media: Sequence[Medium]) -> Any:
    return text, tuple(medium.key() for medium in media)


def _label(medium: Medium) -> str:
    return named(medium.source).removesuffix(": ") or f"{medium.kind} in memory"


def _digest(ids: Sequence[int], pixels: Mapping[str, Tensor]) -> str:
    hasher = hashlib.blake2b(torch.tensor(ids, dtype=torch.int64).numpy().tobytes(), digest_size=16)
    for name, value in sorted(pixels.items()):
        hasher.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        hasher.update(canonical_bytes(value))
    return hasher.hexdigest()


def _size(pixels: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in pixels.values())
