"""Pictures changed by a transform that Pillow or torchvision has, by its name; the same one is always changed alike."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.media.images import picture
from mmalign.media.limits import Limits
from mmalign.types import UserError


class Alteration:
    """A picture -> the file of that picture, changed: PNG, under ``cache``, named by what it was made of.

    name: of a filter of ``PIL.ImageFilter`` (``GaussianBlur``), a function of ``PIL.ImageOps`` (``posterize``), or, where torchvision is
    there, a transform of ``torchvision.transforms.v2`` (``RandomResizedCrop``), the first that there is. settings: its keywords. seed: with
    the picture, of what is random in it. Errors: UserError for a name that there is not, and settings that it does not take.
    """

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None, *, seed: int = 0, cache: str | None = None):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.name, self.settings, self.seed = name, dict(settings or {}), seed
        self.cache = Path(cache) if cache is not None else home / "mmalign" / "media"
        self.change = _named(name, self.settings)

    def __call__(self, source: Any) -> str:
        """The path. source: as of ``media.picture``. Errors: Broken for what is no picture, UserError where the transform fails."""
        whole = picture(source, Limits())
        said = json.dumps([self.name, self.settings, self.seed, whole.size], sort_keys=True).encode()
        key = hashlib.sha256(said + whole.tobytes()).hexdigest()[:40]
        place = self.cache / f"{key}.png"
        if not place.is_file():
            file = io.BytesIO()
            self._changed(whole, int(key[:12], 16)).convert("RGB").save(file, "PNG")
            self.cache.mkdir(parents=True, exist_ok=True)
            half = place.with_suffix(f".{os.getpid()}")
            half.write_bytes(file.getvalue())
            half.replace(place)
        return str(place)

    def _changed(self, whole: Any, seed: int) -> Any:
        import torch
        from PIL import Image

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                changed = self.change(whole)
            except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # whatever a transform raises
                raise UserError(f"transform: {self.name} refuses a picture: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(changed, Image.Image):
            raise UserError(f"transform: {self.name} makes a {type(changed).__name__} of a picture, takes one that makes a picture")
        return changed


def _named(name: str, settings: Mapping[str, Any]) -> Any:
    """picture -> picture. Errors: UserError."""
    from functools import partial

    from PIL import ImageFilter, ImageOps

    if not name.isidentifier() or name.startswith("_"):
        raise UserError(f"transform: got {name!r}, takes the name of one of PIL.ImageFilter, PIL.ImageOps or torchvision.transforms.v2")
    try:
        filters = vars(ImageFilter).get(name)
        if isinstance(filters, type) and issubclass(filters, ImageFilter.Filter):
            made = filters(**settings)
            return lambda whole: whole.filter(made)
        if callable(vars(ImageOps).get(name)):
            return partial(vars(ImageOps)[name], **settings)
        return _of_torchvision(name)(**settings)
    except TypeError as error:
        raise UserError(f"transform: {name} does not take {dict(settings)}: {' '.join(str(error).split())[:200]}") from error


def _of_torchvision(name: str) -> Any:
    why = "PIL.ImageFilter and PIL.ImageOps have none of that name"
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise UserError(f"transform: got {name!r}; {why}, and torchvision is not installed") from error
    if not isinstance(vars(v2).get(name), type):
        raise UserError(f"transform: got {name!r}; {why}, nor has torchvision.transforms.v2")
    return vars(v2)[name]
