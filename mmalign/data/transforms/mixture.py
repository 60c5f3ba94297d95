"""Records of several sources in given parts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmalign.arguments.ranges import NotNegative
from mmalign.data._reading.around import inside
from mmalign.records import Digested, Record, Records, Undecoded
from mmalign.types import UserError


def mixture(of: Mapping[str, Records | Sequence[Record]], *, weights: Mapping[str, NotNegative] | None = None) -> Mixture:
    """Records of several sources, each drawn from one of them with a probability, in the order in which that one gives them.

    of: name -> records of one kind, files of their own each. weights: name -> how probable it is, in any unit; equal by default, and 0 for
    one that is left out. A source that is small comes round sooner, as often as its weight asks for it.

    A run that goes on reads over what it has seen, without decoding it.

    Paper: none for the mixture itself; Tulu, https://arxiv.org/abs/2306.04751, and OpenBezoar, https://arxiv.org/abs/2404.12195, fine-tune
    on such mixes.

    Errors: UserError for fewer than two sources, weights of others, and weights that are all 0.

    Examples:
        >>> from mmalign.records import Thumb
        >>> both = mixture({"a": [Thumb("x", "1", 1.0)], "b": [Thumb("y", "2", 1.0)]}, weights={"a": 1, "b": 0})
        >>> [next(both.stream(seed=0)).prompt, both.broken]
        ['x', {}]
    """
    if not isinstance(of, Mapping) or len(of) < 2:
        raise UserError("records.of: takes two or more sources by name: {chat: {use: texts, ...}, code: {use: texts, ...}}")
    shares = dict.fromkeys(of, 1.0) if weights is None else {name: float(weight) for name, weight in weights.items()}
    if odd := sorted(shares.keys() ^ of.keys()):
        raise UserError(f"records.weights: {odd[0]} is in one of of and weights alone; takes a weight for each of {', '.join(of)}")
    if any(weight < 0 for weight in shares.values()) or not sum(shares.values()) > 0:
        raise UserError(f"records.weights: got {shares}, takes numbers of 0 or more, one of them above")
    return Mixture({name: inside(source) for name, source in of.items()}, shares)


class Mixture:
    """See ``mixture``; as ``records.Records``. A position is the number of records that are over."""

    def __init__(self, sources: Mapping[str, Records], weights: Mapping[str, float]):
        self.sources, self.weights = dict(sources), dict(weights)

    @property
    def broken(self) -> dict[str, str]:
        """Those of all sources."""
        return {name: why for source in self.sources.values() for name, why in source.broken.items()}

    def digest(self) -> str:
        """That of all sources; '' where one of them cannot tell."""
        digests = [source.digest() if isinstance(source, Digested) else "" for source in self.sources.values()]
        return " ".join(digests) if all(digests) else ""

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Records``."""
        return self._drawn({name: source.stream for name, source in self.sources.items()}, seed, start)

    def undecoded(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Undecoded``."""
        coming = {name: source.undecoded if isinstance(source, Undecoded) else source.stream for name, source in self.sources.items()}
        return self._drawn(coming, seed, start)

    def _drawn(self, coming: Mapping[str, Any], seed: int, start: int) -> Iterator[Any]:
        rng, names = random.Random(f"mixture {seed}"), list(self.sources)
        weights, seen = [self.weights[name] for name in names], dict.fromkeys(names, 0)
        for _ in range(start):
            seen[rng.choices(names, weights)[0]] += 1
        streams: dict[str, Iterator[Any]] = {}
        while True:
            name = rng.choices(names, weights)[0]
            if name not in streams:
                streams[name] = coming[name](seed=seed, start=self._place(name, seed, seen[name]))
            start += 1
            yield next(streams[name])._replace(position=start)

    def _place(self, name: str, seed: int, seen: int) -> int:
        """A source's own position once so many of its records are over."""
        source, position = self.sources[name], 0
        if not seen:
            return 0
        coming = source.undecoded(seed=seed) if isinstance(source, Undecoded) else source.stream(seed=seed)
        for _ in range(seen):
            position = next(coming).position
        return position
