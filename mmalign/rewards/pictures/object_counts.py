"""Whether an image shows the objects that its prompt asks for: how many, of which colour, and where; through a detector."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Proportion
from mmalign.matching import reading, refuse_length
from mmalign.rewards._models.clip import Clip, load_clip
from mmalign.rewards._models.weights import device_of, pretrained
from mmalign.rewards._shared.boxes import Box, overlaps
from mmalign.rewards._shared.completions import answers
from mmalign.rewards._shared.pictures import eight_bits
from mmalign.rewards._shared.scorer import Scorer, on_images
from mmalign.types import UserError

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")


class Found(NamedTuple):
    """An object that a detector saw: its class, how sure it is, and its box in pixels."""

    name: str
    score: float
    corners: tuple[float, float, float, float]


Detect = Callable[[Tensor, Sequence[str]], Sequence[Found]]

DIFFERENTIABLE = False


def object_counts(  # the published reward's own settings
    *, detector: str = "google/owlv2-base-patch16-ensemble", detect: Detect | None = None,
    clip: str = "openai/clip-vit-large-patch14", least: Proportion = 0.3, least_counting: Proportion = 0.9,
    overlap: Proportion = 1.0, part: bool = False,
    column: Column = "objects", device: str | None = None,
) -> Scorer:  # fmt: skip
    """1 where an image shows what its prompt's metadata asks for, 0 where it does not; or the ``part`` of its clauses that hold.

    Metadata are GenEval's: ``{"tag": "counting", "include": [{"class": "cup", "count": 2, "color": "red", "position": ["left of", 0]}],
    "exclude": [{"class": "cup", "count": 3}]}``: every ``include`` asks for at least its count, of its colour, each standing so to all
    objects of the include with that number; every ``exclude`` for fewer than its count.

    Args:
        column: of the prompts, that holds the metadata of each.
        detector: hub id or folder of a zero-shot object detector of transformers (OWL-ViT, OWLv2), or of a closed one (DETR and its kin,
            whose classes have to have these names). detect: ``(image [H, W, 3] uint8, names) -> [Found]`` in place of it.
        clip: of the colours, asked only where metadata name one: the likeliest of ten, of the object's box.
        part: answer with the part of the clauses that hold, in place of whether all do.
        least, least_counting: scores of the detector that count, the second where the tag is ``counting``: GenEval's, for its detector;
            zero-shot ones are less sure of themselves. overlap: a box that covers a surer one of its class by more is the same object.

    Needs images. Not differentiable. Images are rounded to 8 bits. Source: GenEval, https://arxiv.org/abs/2310.11513, and its code: at
    most 16 objects of a class, the surest first; positions by centres, less a tenth of both sizes. Deviations: another detector
    than its Mask2Former, and colours are read from boxes, not from masks. Checksums of the weights not known here.

    Errors: UserError for models that cannot be read, settings out of range, and metadata of another shape.
    """
    if not (0 <= least <= 1 and 0 <= least_counting <= 1 and 0 < overlap <= 1):
        raise UserError(f"object_counts: got least={least}, least_counting={least_counting}, overlap={overlap}, takes 0 to 1")
    see = detect or load_detector("object_counts.detector", detector, device)
    find = answers("object_counts", column)
    eyes: list[Clip] = []

    def color_of(picture: Tensor, item: Found) -> str:
        if not eyes:
            eyes.append(load_clip("object_counts", clip, device=device))
        return _color(eyes[0], picture, item)

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        metadata = iter([_metadata(text) for text in find(prompts, columns)])

        def score(images: Tensor, some: list[str]) -> Tensor:
            scores = []
            for picture, row in zip(eight_bits(images), [next(metadata) for _ in some], strict=True):
                names = sorted({clause["class"] for clause in (*row["include"], *row["exclude"])})
                sure = least_counting if row.get("tag") == "counting" else least
                objects = _kept(see(picture, names), sure, overlap)
                verdicts = clauses(row, objects, partial(color_of, picture))
                scores.append(sum(verdicts) / len(verdicts) if part else float(all(verdicts)))
            return torch.tensor(scores)

        return on_images("object_counts", score, differentiable=DIFFERENTIABLE, rows_at_once=16)(outputs, prompts)  # type: ignore[no-any-return]

    return Scorer("object_counts", reward, low=0.0, high=1.0, reads=frozenset({column}))


def clauses(row: Mapping[str, Any], objects: Mapping[str, Sequence[Found]], color_of: Callable[[Found], str]) -> list[bool]:
    """Whether each clause of the metadata holds, in their order; a clause that refers to one that does not hold does not either."""
    verdicts: list[bool] = []
    groups: list[list[Found] | None] = []
    for clause in row["include"]:
        items = list(objects.get(clause["class"], []))[: clause["count"]]
        good = len(items) == clause["count"]
        if good and "color" in clause:
            good = all(color_of(one) == clause["color"] for one in items)
        if good and "position" in clause:
            where, number = clause["position"]
            others = groups[number] if number < len(groups) else None
            good = others is not None and all(where in standing(one, other) for one in items for other in others)
        verdicts.append(good)
        groups.append(items if good else None)
    return verdicts + [len(objects.get(clause["class"], [])) < clause["count"] for clause in row["exclude"]]


def standing(one: Found, other: Found, *, slack: float = 0.1) -> set[str]:
    """Where an object is, seen from another: by their centres, less ``slack`` of both sizes, as a direction within 60 degrees."""
    apart, sizes = [], []
    for low, high in ((0, 2), (1, 3)):
        apart.append((one.corners[low] + one.corners[high] - other.corners[low] - other.corners[high]) / 2)
        sizes.append(one.corners[high] - one.corners[low] + other.corners[high] - other.corners[low])
    left = [max(0.0, abs(offset) - slack * size) * (1 if offset > 0 else -1) for offset, size in zip(apart, sizes, strict=True)]
    far = math.hypot(*apart)
    if far == 0:
        return set()
    sides = ((left[0] < -far / 2, "left of"), (left[0] > far / 2, "right of"), (left[1] < -far / 2, "above"), (left[1] > far / 2, "below"))
    return {name for holds, name in sides if holds}


def load_detector(key: str, weights: str, device: str | None) -> Detect:
    """An object detector of transformers as one function; zero-shot where its configuration is of such a model."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection, AutoProcessor

    with reading(key, weights, "a folder or a hub id of an object detector"):
        any_name = AutoConfig.from_pretrained(weights).model_type in ("owlvit", "owlv2")
        kind = AutoModelForZeroShotObjectDetection if any_name else AutoModelForObjectDetection
        model = pretrained(key, kind, weights, "an object detector").to(device_of(device)).eval().requires_grad_(False)
        processor = AutoProcessor.from_pretrained(weights) if any_name else AutoImageProcessor.from_pretrained(weights)
        if any_name:
            refuse_length(key, processor.tokenizer)
    classes = {} if any_name else {str(name).casefold(): number for number, name in model.config.id2label.items()}

    @torch.no_grad()
    def detect(picture: Tensor, names: Sequence[str]) -> list[Found]:
        if not any_name and (strange := [name for name in names if name.casefold() not in classes]):
            raise UserError(f"{key}: {weights} knows no {strange[0]!r}; takes one of its classes, or a zero-shot detector")
        shape, settings = [tuple(picture.shape[:2])], {"return_tensors": "pt", "do_convert_rgb": False}  # it is RGB
        if any_name:
            inputs = processor(images=picture.numpy(), text=[[f"a photo of a {name}" for name in names]], **settings)
            answer = model(**inputs.to(model.device))
            detected = processor.post_process_grounded_object_detection(answer, threshold=0.0, target_sizes=shape)[0]
        else:
            answer = model(**processor(images=picture.numpy(), **settings).to(model.device))
            detected = processor.post_process_object_detection(answer, threshold=0.0, target_sizes=shape)[0]
        labels = [names[int(label)] if any_name else model.config.id2label[int(label)] for label in detected["labels"]]
        wanted = {name.casefold(): name for name in names}
        rows = zip(labels, detected["scores"].tolist(), detected["boxes"].tolist(), strict=True)
        return [Found(wanted[label.casefold()], score, tuple(box)) for label, score, box in rows if label.casefold() in wanted]

    return detect


def _kept(objects: Sequence[Found], least: float, overlap: float) -> dict[str, list[Found]]:
    """Objects that are sure enough, by class, the surest first, at most 16; of boxes that cover each other by more, the surest."""
    kept: dict[str, list[Found]] = {}
    for one in sorted((one for one in objects if one.score > least), key=lambda one: -one.score):
        same = kept.setdefault(one.name, [])
        box = Box(one.corners, "")
        if len(same) < 16 and not any(float(overlaps([box], [Box(other.corners, "")])[0, 0]) > overlap for other in same):
            same.append(one)
    return kept


@torch.no_grad()
def _color(clip: Clip, picture: Tensor, item: Found) -> str:
    x1, y1, x2, y2 = (round(corner) for corner in item.corners)
    height, width = picture.shape[:2]
    x1, y1 = min(max(0, x1), width - 1), min(max(0, y1), height - 1)
    cut = picture[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].permute(2, 0, 1)[None].float() / 255
    ways = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
    words = clip.of_prompts([way.format(color, item.name) for color in COLORS for way in ways]).view(len(COLORS), len(ways), -1)
    return COLORS[int((words.mean(1) / words.mean(1).norm(dim=-1, keepdim=True) @ clip.of_images(cut)[0]).argmax())]


def _metadata(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
        row = {"exclude": [], **row}
        good = all(isinstance(clause["class"], str) and int(clause["count"]) >= 1 for clause in (*row["include"], *row["exclude"]))
        good = good and all(clause.get("color", "red") in COLORS for clause in row["include"])
        good = good and all(clause["position"][0] in POSITIONS for clause in row["include"] if "position" in clause)
        if good and (row["include"] or row["exclude"]):
            return row
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        pass  # said below
    raise UserError(f'object_counts.column: got {text[:80]!r}, takes {{"include": [{{"class": ..., "count": 1}}], "exclude": []}}')
