"""What people judge: items, each a prompt with two or more outputs, which lie in a folder from the moment they are drawn or read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmalign.files import digest, write_json, write_text
from mmalign.records import Pair, Ranking, Record, once, outputs_of
from mmalign.runs.pictures import write_mp4, write_png
from mmalign.types import UserError

Kind = Literal["text", "image", "video"]
ITEMS, ORIGIN, OUTPUTS = "items.jsonl", "origin.json", "outputs"
ENDINGS = {"image": ".png", "video": ".mp4"}


@dataclass(frozen=True)
class Item:
    """One prompt and its outputs: words, or names of files under ``outputs/`` (PNG, as exact as the eye's 8 bits; MP4).

    id: what it is called. made_by: what made each output, which nobody who judges is told. prompt: words, or a conversation.
    """

    id: str
    prompt: Any
    kind: Kind
    outputs: tuple[str, ...]
    made_by: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.outputs) < 2 or len(self.outputs) != len(self.made_by):
            raise UserError(f"item {self.id}: {len(self.outputs)} outputs by {len(self.made_by)}, takes two or more, each by somebody")


class Items:
    """The items of a folder, in their order. ``origin`` is what they were made of (models with their weights, a file), as it is told apart.

    Errors: UserError for a folder whose items are of another origin.
    """

    def __init__(self, folder: Path, origin: dict[str, Any] | None = None):
        self.folder = folder
        known = json.loads((folder / ORIGIN).read_text(encoding="utf-8")) if (folder / ORIGIN).is_file() else None
        if known is None and origin is None:
            raise UserError(f"{folder}: nothing to judge there yet; takes --model, or --pairs")
        if known is not None and origin is not None and (changed := _changed(known, origin)):
            raise UserError(
                f"{folder}: what is judged there was made with another {changed}; takes another file for these labels, or no --model and "
                "no --pairs to go on with what was drawn then"
            )
        self.origin: dict[str, Any] = known or origin or {}
        self.all = list(self._read())
        self.by_id = {item.id: item for item in self.all}

    def _read(self) -> Iterator[Item]:
        file = self.folder / ITEMS
        if not file.is_file():
            return
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            if not line:
                continue
            try:
                row = json.loads(line)
                yield Item(**{**row, "outputs": tuple(row["outputs"]), "made_by": tuple(row["made_by"])})
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{file}, line {number}: is no item of mmalign label") from error

    def store(self, name: str, output: Any) -> tuple[Kind, str]:
        """Puts an output (words, an image ``[C, H, W]`` or a video ``[F, C, H, W]`` in 0..1) where it stays; its kind, and what holds it.

        Errors: UserError for another.
        """
        if isinstance(output, str):
            return "text", output
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"outputs: got {got}, takes words, images [channels, height, width] or videos [frames, ...]")
        kind: Kind = "video" if output.ndim == 4 else "image"
        path = self.folder / OUTPUTS / f"{name}{ENDINGS[kind]}"
        pixels = (output.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu()
        write = write_mp4 if kind == "video" else write_png
        write(path, pixels)
        return kind, path.name

    def add(self, prompt: Any, stored: Sequence[tuple[Kind, str]], made_by: Sequence[str], *, id: str) -> None:
        """An item more, of outputs that are stored; it is there with the next ``save``. Errors: UserError for outputs of several kinds."""
        kinds = {kind for kind, _ in stored}
        if len(kinds) != 1 or id in self.by_id:
            raise UserError(f"item {id}: got outputs that are {' and '.join(sorted(kinds))}, or a second one of that name; takes one")
        item = Item(id, prompt, kinds.pop(), tuple(name for _, name in stored), tuple(made_by))
        self.all.append(item)
        self.by_id[id] = item

    def save(self) -> None:
        """Writes all items, whole or not at all."""
        write_text(self.folder / ITEMS, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in self.all))
        write_json(self.folder / ORIGIN, self.origin)

    def path(self, item: Item, output: int) -> Path:
        """Where an output's file is."""
        return self.folder / OUTPUTS / item.outputs[output]


def _changed(known: dict[str, Any], origin: dict[str, Any]) -> str:
    """The first thing that two origins do not have alike; '' where they are one."""
    told = json.loads(json.dumps(origin))
    return next((key for key in {**known, **told} if known.get(key) != told.get(key)), "")


def of_records(items: Items, records: Iterable[Record], most: int | None) -> None:
    """Pairs and rankings that are there already as items, whatever was said of them; each once. Saved at the end.

    Errors: UserError for other records, and for none.
    """
    for number, record in enumerate(islice(once(records), most)):
        if not isinstance(record, (Pair, Ranking)):
            raise UserError(f"pairs: {record.id} is one output with a label, takes pairs or rankings")
        outputs, name = outputs_of(record), record.id or str(number)
        stored = [items.store(f"{number:05d}-{place}", output) for place, output in enumerate(outputs)]
        items.add(record.prompt, stored, [f"{name}:{place}" for place in range(len(outputs))], id=name)
    if not items.all:
        raise UserError("pairs: the file holds none")
    items.save()


def origin_of_file(path: str) -> dict[str, Any]:
    """What a file of pairs is told apart by."""
    return {"file": Path(path).name, "content": digest([path])}
