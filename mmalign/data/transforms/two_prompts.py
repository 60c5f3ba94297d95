"""Pairs of one output under two prompts: it fits the one better than the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmalign.arguments.ranges import Seed
from mmalign.conversations import has_media, question, said_instead
from mmalign.data._reading.around import Around, inside
from mmalign.media import Broken
from mmalign.media.altering import Alteration
from mmalign.records import Pair, Record, Records, Thumb
from mmalign.types import UserError

__all__ = ["two_pictures", "two_prompts"]


def two_prompts(of: Records | Sequence[Record], *, edits: Callable[[list[str]], list[str]]) -> TwoPrompts:
    """Good outputs, each under its own prompt against another wording that it does not fit: pairs for every method that compares two rows.

    With DPO's reward and prompts x, x' that is ``-log sigmoid(beta ((log pi - log ref)(y | x) - (log pi - log ref)(y | x')))``: what an
    output owes to its prompt, of words as well as of images (text preference optimisation compares so; ``mapl`` and ``text_dpo`` make the
    other prompt inside of the method). What the two prompts' partition functions add to a reward is left out, as there.

    of: pairs, of which the better output is taken, or thumbs that are up; those that hold no such, and those in whose prompt nothing can
        be changed, are passed over, the latter named in ``broken``.
    edits: prompts -> prompts that do not fit, such as ``{use: edited, vocabulary: ...}``; of a conversation, of what its user says last.

    Paper: Free Lunch Alignment of Text-to-Image Diffusion Models without Preference Image Pairs (TPO), arXiv 2509.25771.

    Errors: UserError for 1,000 records in a row that are passed over.

    Examples:
        >>> from mmalign.records import Thumb
        >>> edit = mm.data.edited(vocabulary={"attributes": {"red": ["blue"]}})
        >>> pair = next(two_prompts([Thumb("a red fox", "fox.png", 1.0)], edits=edit).stream(seed=0))
        >>> (pair.prompt, pair.other, pair.first == pair.second)
        ('a red fox', 'a blue fox', True)
    """
    return TwoPrompts(inside(of), edits)


def two_pictures(
    of: Records | Sequence[Record], *, transform: str, settings: Mapping[str, Any] | None = None, seed: Seed = 0, cache: str | None = None
) -> TwoPictures:
    """Good answers about pictures, each under its own prompt against the same with changed pictures: an answer that needs to look.

    With ``dpo`` that is mDPO's second term as records, for every method that compares two rows. Videos stay as they are.

    Args:
        of: pairs, of which the better answer is taken, or thumbs that are up, whose prompts hold images; others are passed over.
        transform: of PIL.ImageFilter (``GaussianBlur``), PIL.ImageOps (``posterize``) or torchvision.transforms.v2
            (``RandomResizedCrop``), by its name.
        settings: its keywords. seed: with the picture, of what is random in it: the same picture is always changed alike.
        cache: where changed pictures are written; by default where those that come as bytes are.

    Paper: mDPO, arXiv 2406.11839, whose changed picture is a crop of at most a fifth (*recalled*).

    Errors: UserError for a transform that there is not or that refuses its settings, and for 1,000 records in a row that are passed over.
    """
    return TwoPictures(inside(of), Alteration(transform, settings, seed=seed, cache=cache))


class _Twofold(Around, ABC):
    """Pairs of a good output under its prompt and under another one."""

    useless = "have no good output under a prompt that can be changed"

    def _change(self, record: Any) -> Any:
        good = _good(record)
        if good is None:
            return None
        try:
            other = self._other(record.prompt)
        except (UserError, Broken) as error:
            self.broken[record.id or f"record at {record.position}"] = str(error)
            return None
        return (
            None
            if other is None or other == record.prompt
            else Pair(record.prompt, good, good, 1.0, record.id, record.position, other=other)
        )

    @abstractmethod
    def _other(self, prompt: Any) -> Any:
        """The other prompt, None for one that cannot be changed. Errors: UserError or Broken, which name why."""


class TwoPrompts(_Twofold):
    """See ``two_prompts``; as ``records.Records``."""

    def __init__(self, source: Records, edits: Callable[[list[str]], list[str]]):
        super().__init__(source)
        self.edits = edits

    def _other(self, prompt: Any) -> Any:
        return said_instead(prompt, self.edits([question(prompt)])[0])


class TwoPictures(_Twofold):
    """See ``two_pictures``; as ``records.Records``."""

    def __init__(self, source: Records, alter: Alteration):
        super().__init__(source)
        self.alter = alter

    def _other(self, prompt: Any) -> Any:
        return altered(prompt, self.alter) if has_media(prompt) else None


def altered(prompt: Sequence[Mapping[str, Any]], alter: Alteration) -> list[dict[str, Any]]:
    """A conversation whose images are changed, known by the paths of their files. Errors: Broken for one that cannot be read."""
    return [{**turn, "content": [_part(part, alter) for part in turn["content"]] if isinstance(turn["content"], list) else turn["content"]}
            for turn in prompt]  # fmt: skip


def _part(part: Any, alter: Alteration) -> Any:
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    source = next((part[key] for key in ("path", "image", "url") if part.get(key) is not None), None)
    return {"type": "image", "path": alter(str(source) if isinstance(source, str) else source)}


def _good(record: Any) -> Any:
    """The better output of a record, None where there is none."""
    if isinstance(record, Pair):
        if record.other is not None:
            raise UserError(f"records.of: {record.id or 'a pair'} has two prompts already, takes pairs with one")
        return (
            None if record.strength == 0.5 or record.strength != record.strength else (record.second, record.first)[record.strength > 0.5]
        )
    return record.output if isinstance(record, Thumb) and record.label > 0.5 else None
