"""The bytes behind a source: bytes, a path, a cell of a data set, a ``data:`` URL, an address."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from mmalign.media.limits import SHOWN, Broken, Limits, named
from mmalign.media.whole import fault


def read_bytes(source: Any, limits: Limits) -> bytes:
    """The bytes behind a source, at most ``limits.bytes`` of them.

    source: bytes, a path, ``{"bytes": ..., "path": ...}`` as data sets store media, ``data:image/png;base64,...``, or, where
    ``limits.urls`` allows it, an https address. limits: those of bytes and addresses.

    Errors: Broken where there are none, or more.
    """
    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if source is None or source == "":
        raise Broken(f"nothing there ({type(source).__name__})")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _held(bytes(source), limits, "", "no bytes")
    if not isinstance(source, (str, Path)):
        raise Broken(f"got {type(source).__name__}, takes bytes or a path")
    if isinstance(source, str) and _is_data(source):
        return _held(_decoded(source, limits), limits, named(source), "no bytes")
    return _fetched(str(source), limits) if is_address(source) else _file(source, limits)


def read_whole(source: Any, limits: Limits) -> bytes:
    """The same of a file that ends where it says that it ends; nothing is decoded.

    source, limits: as in ``read_bytes``.

    Errors: Broken, as there, and for a file that is cut off, or of more pieces than any real one.
    """
    data = read_bytes(source, limits)
    if words := fault(data):
        raise Broken(f"{named(source)}{words}")
    return data


def is_address(source: Any) -> bool:
    """Whether a source is a URL, ``data:`` included, and not a path."""
    return isinstance(source, str) and ("://" in source[:16] or _is_data(source))


def _is_data(source: str) -> bool:
    return source[:5].lower() == "data:"


def _held(data: bytes, limits: Limits, name: str, empty: str) -> bytes:
    if len(data) > limits.bytes:
        raise Broken(f"{name}{len(data)} bytes, takes at most {limits.bytes}")
    if not data:
        raise Broken(f"{name}{empty}")
    return data


def _decoded(source: str, limits: Limits) -> bytes:
    """What a ``data:`` URL holds."""
    header, comma, text = source.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise Broken(f"{named(source)}takes data:TYPE;base64,DATA")
    if len(text) > 2 * limits.bytes:  # 4 letters for 3 bytes, and line ends
        raise Broken(f"{named(source)}{len(text)} letters of base64, takes at most {limits.bytes} bytes")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Broken(f"{named(source)}not base64: {error}") from error


def _fetched(address: str, limits: Limits) -> bytes:
    if not limits.urls:
        raise Broken(f"{named(address)}an address, which is not read (urls: true reads https from public hosts)")
    from mmalign.fetching import Refused, fetch

    try:
        return fetch(address, most=limits.bytes, seconds=limits.seconds)
    except Refused as error:
        raise Broken(str(error)) from error


def _file(path: str | Path, limits: Limits) -> bytes:
    if not os.path.isfile(path):  # False also for names that no file can have, for which Path.is_file raises
        raise Broken(f"no such file: {str(path)[:SHOWN]}")
    name = named(path)
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            data = b"" if size > limits.bytes else file.read(limits.bytes + 1)  # a file may grow, and some say no size
    except OSError as error:
        raise Broken(f"{name}cannot be read: {error.strerror or type(error).__name__}") from error
    if size > limits.bytes:
        raise Broken(f"{name}{size} bytes, takes at most {limits.bytes}")
    return _held(data, limits, name, "an empty file")
