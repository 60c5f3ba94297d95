"""What a medium may cost, and the one error that readers of media raise."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mmalign.arguments.ranges import Count, Positive, within
from mmalign.arguments.signatures import Record
from mmalign.types import UserError

Animated = Literal["refuse", "first"]
SHOWN = 120  # letters of a name, or of a decoder's words, in a message

# What decoders of strangers' files were seen to raise for damage, beside their own errors. Nothing of ours runs where it is caught.
DAMAGE: tuple[type[Exception], ...] = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip


class Broken(UserError):
    """A medium that cannot be used; one line says which and why. Readers of many put it aside and go on."""


@dataclass(frozen=True)
class Limits(Record):
    """Limits of the images and videos that are read.

    bytes: of the file. pixels: width times height of an image or of one frame. size: bring every image to ``(height, width)`` by scaling
    it to cover that and cutting the middle out; None leaves sizes alone. animated: of animated images, take the ``first`` frame (and say
    so), or ``refuse`` them. frames: of a video, spread evenly over its length. urls: whether addresses are read, too (``fetching.py``:
    https and public hosts only). seconds: for one address in all. decoding: seconds that all frames of one video may take, by the clock
    and of the processor's time, so that a machine that stands still breaks no video; the frame that is being decoded then comes to its end.
    """

    bytes: Annotated[int, within(1)] = 64 * 2**20
    pixels: Annotated[int, within(1)] = 64 * 10**6
    size: tuple[Count, Count] | None = None
    animated: Animated = "refuse"
    frames: Count = 16
    urls: bool = False
    seconds: Positive = 20.0
    decoding: Positive = 600.0

    def check_pixels(self, name: str, width: int, height: int) -> None:
        """Errors: Broken for more than ``pixels``."""
        if width * height > self.pixels:
            raise Broken(f"{name}{width} x {height} pixels, takes at most {self.pixels}")


@contextmanager
def decoding(name: str, *errors: type[Exception]) -> Iterator[None]:
    """Around calls of a decoder alone: whatever it raises for a damaged file becomes Broken, in one line.

    name: how the message begins, as ``named`` says it. errors: the decoder's own, beside ``DAMAGE``.
    """
    try:
        yield
    except DAMAGE + errors as error:
        words = " ".join(str(error).split())[:SHOWN] or type(error).__name__
        raise Broken(f"{name}not decodable: {words}") from error


def named(source: Any) -> str:
    """How messages about a source begin: its path or address and a colon, or nothing where it has no name."""
    if isinstance(source, dict):
        source = source.get("path")
    if not isinstance(source, (str, Path)) or not str(source):
        return ""
    text = str(source)
    return f"{text.partition(',')[0][:SHOWN] if text[:5].lower() == 'data:' else text[:SHOWN]}: "
