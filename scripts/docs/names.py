"""Every public name of mmalign, and the page that it has."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import mmalign
from mmalign.lookup import catalogue, settings
from mmalign.lookup.catalogue import KINDS, Listing
from mmalign.rooms import Entry, index

mm: Any = mmalign  # its tables are not in its stub
PARTS = "parts"  # the topic of what is of no kind: records, tables and functions that stand behind the others


class Named(NamedTuple):
    """Something public. paths: how Python says it behind ``mm.``, the shortest first; none for settings that have a mapping alone.

    listing: what `catalogue` knows of it; ``kind`` is empty for what is of no kind.
    """

    listing: Listing
    paths: tuple[str, ...]

    @property
    def topic(self) -> str:
        """The page of tables that lists it."""
        return self.listing.kind or PARTS

    @property
    def page(self) -> str:
        """Its page, from the root of the site: where Python finds it."""
        if not self.paths:
            return f"api/settings/{self.listing.name}.md"
        twin = self.listing.name != self.listing.name.lower() and self.paths[0].lower() in _paths()
        return f"api/{self.paths[0].replace('.', '/')}{'_class' if twin else ''}.md"  # files that differ in more than their case

    def load(self) -> Any:
        """What has the name."""
        if self.listing.kind:
            return catalogue.function(self.listing)
        return getattr(importlib.import_module(self.listing.place.removesuffix(".py").replace("/", ".")), self.listing.name)


@cache
def named() -> tuple[Named, ...]:
    """Everything that has a name behind ``mm.`` and every record of settings, each once."""
    kinds = {(listing.place, listing.name): listing for kind in _kinds() for listing in catalogue.everything(kind)}
    found = []
    for (module, name), (entry, paths) in _entries().items():
        listing = kinds.get((place(module), name)) or Listing(name, "", entry.meaning, entry.paper, place(module))
        found.append(Named(listing, tuple(sorted(paths, key=lambda path: (path.count("."), len(path), path)))))
    records: dict[str, Named] = {}
    for setting in settings.SETTINGS:
        record = setting.record.rpartition(".")[2]
        own = (record,) if record in mm.SETTINGS else ()
        listing = Listing(setting.key, "settings", setting.meaning, "", setting.place, setting)
        records.setdefault(setting.record, Named(listing, own))
    return (*sorted(found, key=lambda one: one.page), *records.values())


def of_topic(topic: str) -> list[Named]:
    """What a topic lists, by name."""
    return sorted((one for one in named() if one.topic == topic), key=lambda one: one.listing.name.casefold())


def place(module: str) -> str:
    """The file of a module."""
    return module.replace(".", "/") + ".py"


@cache
def _paths() -> frozenset[str]:
    return frozenset(path for _, paths in _entries().values() for path in paths)


@cache
def page_of(path: str) -> str | None:
    """The page of what Python calls ``mm.PATH``."""
    return next((one.page for one in named() if path in one.paths), None)


def _kinds() -> Iterator[str]:
    """Kinds of functions; a world's rewards and metrics are rewards and metrics first."""
    words = [word for word in KINDS if word not in ("configs", "settings")]
    return iter(sorted(words, key=lambda word: word != "worlds"))


def _entries() -> dict[tuple[str, str], tuple[Entry, list[str]]]:
    """(module, name) -> what its file says of it, and its paths behind ``mm.``."""
    found: dict[tuple[str, str], tuple[Entry, list[str]]] = {}
    homes = [(f"mmalign.{room}", f"{room}.") for room in mm.ROOMS]
    homes += [(module, f"{name}.") for name, module in mm.FILES.items()]
    homes += [(module, "") for module in mm.CALLED]
    for home, before in homes:
        for name, entries in index(home).items():
            for entry in entries:
                found.setdefault((entry.module, name), (entry, []))[1].append(f"{before}{name}")
    for name, home in mm.FLAT.items():
        if name not in mm.SETTINGS:
            entry = next(iter(index(home).get(name, ())), None) or _outside(home, name)
            found.setdefault((entry.module, name), (entry, []))[1].append(name)
    return found


def _outside(home: str, name: str) -> Entry:
    """What has a name of its own in a file that offers others."""
    value = getattr(importlib.import_module(home), name)
    return Entry(name, home, (value.__doc__ or "").partition("\n")[0], "", not isinstance(value, type), "")
