"""What a config reads of the environment, ``${oc.env:KEY}``: used where it is needed, kept as it is written, and masked in lines.

A run's config.yaml, its report and its trackers hold what was written. So does a run that Python started with a key from the
environment: the value of a variable that is called like a secret becomes the variable again.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

READ = re.compile(r"\$\{oc\.env:")
SECRET = re.compile(r"(?i)(^|_)(api_?)?(key|token|secret|password|passwd|credentials?)(_|$)")
LONG = 8
"""Characters from which on a value is masked inside of longer texts; a shorter one is no secret, and half of any sentence."""

_WRITTEN: dict[str, str] = {}
"""value -> how a config wrote it, of everything that was read."""


@cache
def watch() -> None:
    """Makes OmegaConf remember what it reads of the environment; it reads as it did."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def read(name: str, *default: Any) -> Any:
        value = oc.env(name, *default)
        if name in os.environ:
            _WRITTEN[str(value)] = f"${{oc.env:{','.join(map(str, (name, *default)))}}}"
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # omegaconf 2.4 gives it the name that meant another thing in 2.3
        OmegaConf.register_new_resolver("oc.env", read, replace=True)


def resolved(value: Any, key: str = "") -> Any:
    """A part of a run's config.yaml with what it reads of the environment. Errors: UserError for a variable that is not set."""
    if isinstance(value, Mapping):
        return {name: resolved(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [resolved(item, f"{key}[{number}]") for number, item in enumerate(value)]
    if not isinstance(value, str) or not READ.search(value):
        return value
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mmalign.types import UserError

    watch()
    try:
        return OmegaConf.create({"value": value})["value"]
    except OmegaConfBaseException as error:
        raise UserError(f"{key.lstrip('.')}: {str(error).splitlines()[0]}") from error


def reads(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of everything in a run's config.yaml that reads the environment."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from reads(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from reads(item, f"{key}[{number}]")
    elif isinstance(value, str) and READ.search(value):
        yield key, value


def as_written(value: Any) -> Any:
    """A config with the values that were read of the environment as they were written."""
    if isinstance(value, Mapping):
        return {key: as_written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_written(item) for item in value]
    if not isinstance(value, str):
        return value
    return _WRITTEN.get(value) or masked(value)


def masked(text: str) -> str:
    """A line for people, or a log, without the secrets that are known.

    Examples:
        >>> os.environ["MY_API_KEY"] = "sk-0123456789"
        >>> masked("refused: sk-0123456789")
        'refused: ${oc.env:MY_API_KEY}'
    """
    secrets = {value: f"${{oc.env:{name}}}" for name, value in os.environ.items() if SECRET.search(name)}
    written_as = {value: written for value, written in {**secrets, **_WRITTEN}.items() if len(value) >= LONG}
    for value in sorted(written_as, key=len, reverse=True):
        text = text.replace(value, written_as[value])
    return text
