"""Records some of whose outputs the policy draws itself when they are used: against good images, and pairs that it ranks itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmalign.arguments.ranges import Count, Proportion
from mmalign.data._reading.around import Around, decoded_pair, inside, refuse_two_prompts
from mmalign.data.pairs import listed
from mmalign.records import Author, Drawn, Pair, Record, Records, Thumb
from mmalign.types import UserError, contents

__all__ = ["against_own", "own_samples", "self_ranked"]

OWN = "the policy itself"  # the annotator of pairs that it ranked

Functions = Mapping[str, Callable[..., Any]]
Combine = Callable[..., Any]


def against_own(
    of: Records | Sequence[Record], *, by: str | None = None, call: dict[str, Any] | None = None, rewards: Functions | None = None,
    combine: Combine | None = None,
) -> AgainstOwn:  # fmt: skip
    """The good outputs of other records, each against one that the policy draws for the same prompt, anew every time (SePPO, SPIN, RPO).

    Args:
        of: records: of pairs the better output is taken, and thumbs that are up.
        by: the set of parameters that draws (``previous``, ``ref``, ...); by default the method's own, which is the current one for most.
        call: arguments of the sampler (``num_inference_steps``).
        rewards: name -> reward: the given output is then the better one with probability ``sigmoid(R(given) - R(drawn))``, and else surely.
            They may read the column ``references``, the given outputs of the step's records that this process draws for.
        combine: how rewards become one number; their sum by default.

    Rows that are given are labelled 1 and those that are drawn 0, for methods that learn from labels too.

    Errors: UserError where the first 1,000 records hold no good output.
    """
    return AgainstOwn(inside(of), by, call or {}, rewards or {}, combine)


def own_samples(
    prompts: Sequence[Any], *, by: str | None = None, call: dict[str, Any] | None = None, label: Proportion = 1.0
) -> OwnSamples:
    """Thumbs on what the policy draws for these prompts, anew every time: it learns from its own samples (Self-NPO), or to avoid them.

    Args:
        prompts: each is drawn for once in every pass.
        by: the set of parameters that draws, as in ``against_own``; ``ref`` is the policy as it was.
        call: arguments of the sampler: fewer steps and no guidance make worse samples (``{num_inference_steps: 6, guidance_scale: 1.0}``).
        label: how good they are called, 1 for good ones.

    Errors: UserError without a prompt.
    """
    if not prompts:
        raise UserError("records.prompts: got none, takes at least one")
    return OwnSamples(
        listed([Thumb(prompt, Drawn(), label, f"own {place}") for place, prompt in enumerate(contents(prompts))]), by, call or {}
    )


def self_ranked(
    of: Records | Sequence[Record], *, by: str = "previous", call: dict[str, Any] | None = None, prompts: Sequence[Any] | None = None,
    share: Proportion = 0.5, candidates: Count = 4, keep: Proportion = 0.5, looks: Count = 4,
) -> SelfRanked:  # fmt: skip
    """Pairs of people, and among them pairs that the policy draws and ranks itself, by its implicit reward ``log pi - log ref`` (SAIL).

    Args:
        of: pairs, the seed.
        by: the set of parameters that draws and ranks: ``references: {previous: {every: N}}`` renews it, which is a round of N steps.
        call: arguments of the sampler.
        prompts: for own pairs; those of the seed by default.
        share: of the records of every pass that become own pairs, others in every pass.
        candidates: drawn for one own pair, 2 or more; the best and the worst of them are the pair.
        keep: of a step's own pairs, those whose implicit rewards are furthest apart; the others say nothing.
        looks: draws of noise over which an implicit reward is averaged, of as many levels each as the policy has ``draws``.

    Before the first round the policy is the reference, all implicit rewards are 0, and own pairs say nothing.

    Paper: SAIL: Self-Amplified Iterative Learning for Diffusion Model Alignment with Minimal Human Feedback,
    https://arxiv.org/abs/2602.05380, of which the abstract was at hand: that the mix-up is by rank is theirs; share and keep are ours.

    Errors: UserError for one candidate.
    """
    if candidates < 2:
        raise UserError(f"records.candidates: got {candidates}, takes 2 or more")
    own = None if prompts is None else list(contents(prompts))
    return SelfRanked(inside(of), by, call or {}, own, share, candidates, keep, looks)


class AgainstOwn(Around):
    """See ``against_own``; as ``records.Records``."""

    useless = "hold nothing good; takes pairs, or thumbs that are up"

    def __init__(self, source: Records, by: str | None, call: Mapping[str, Any], rewards: Functions, combine: Combine | None):
        super().__init__(source)
        self.by, self.call, self.rewards, self.combine = by, call, rewards, combine
        next(self._changed(source.stream(seed=0)))

    def _change(self, record: Any) -> Pair | None:
        refuse_two_prompts(record)
        good = _good(record)
        return None if good is None else Pair(record.prompt, good, Drawn(), 1.0, record.id, record.position)

    def settled(self, records: list[Any]) -> list[Any]:
        """As in ``records.Unfinished``."""
        return records

    def finished(self, records: list[Any], author: Author) -> list[Any]:
        """As in ``records.Unfinished``."""
        drawn = author.draw([record.prompt for record in records], [_name(record) for record in records], by=self.by, call=self.call)
        pairs = [record._replace(second=output) for record, output in zip(records, drawn, strict=True)]
        if not self.rewards or not pairs:
            return pairs
        decoded = [decoded_pair(pair) for pair in pairs]
        if None in decoded:  # of which the recipe finds out when it encodes the row, and puts its record aside
            return pairs
        pairs = [pair for pair in decoded if pair is not None]
        rows = [output for pair in pairs for output in (pair.first, pair.second)]
        prompts, group = [pair.prompt for pair in pairs for _ in range(2)], [place for place in range(len(pairs)) for _ in range(2)]
        columns = {"references": [[pair.first for pair in pairs]] * len(rows)}
        scores = author.rewards(self.rewards, self.combine, prompts, rows, group, columns)
        both = list(zip(scores[0::2], scores[1::2], strict=True))
        return [pair._replace(strength=_chance(*two), scores=two) for pair, two in zip(pairs, both, strict=True)]


class OwnSamples(Around):
    """See ``own_samples``; as ``records.Records``."""

    def __init__(self, source: Records, by: str | None, call: Mapping[str, Any]):
        super().__init__(source)
        self.by, self.call = by, call

    def settled(self, records: list[Any]) -> list[Any]:
        """As in ``records.Unfinished``."""
        return records

    def finished(self, records: list[Any], author: Author) -> list[Any]:
        """As in ``records.Unfinished``."""
        drawn = author.draw([record.prompt for record in records], [_name(record) for record in records], by=self.by, call=self.call)
        return [record._replace(output=output) for record, output in zip(records, drawn, strict=True)]


class SelfRanked(Around):
    """See ``self_ranked``; as ``records.Records``."""

    def __init__(
        self, source: Records, by: str, call: Mapping[str, Any], prompts: list[Any] | None, share: float, candidates: int, keep: float,
        looks: int,
    ):  # fmt: skip
        super().__init__(source)
        self.by, self.call, self.prompts, self.share, self.candidates, self.keep, self.looks = (
            by,
            call,
            prompts,
            share,
            candidates,
            keep,
            looks,
        )

    def _change(self, record: Any) -> Any:
        """By a draw that depends on the record's position alone, so that a resumed run has the same own pairs."""
        refuse_two_prompts(record)
        number = int.from_bytes(hashlib.blake2b(_name(record).encode(), digest_size=8).digest(), "big")
        if not isinstance(record, Pair) or number % 2**20 >= self.share * 2**20:
            return record
        prompt = record.prompt if self.prompts is None else self.prompts[(number >> 20) % len(self.prompts)]
        return Pair(prompt, Drawn(), Drawn(), 1.0, record.id, record.position, annotator=OWN)

    def finished(self, records: list[Any], author: Author) -> list[Any]:
        """As in ``records.Unfinished``."""
        own = [place for place, record in enumerate(records) if record.annotator == OWN]
        rows = [(place, number) for place in own for number in range(self.candidates)]
        prompts, names = [records[place].prompt for place, _ in rows], [f"{_name(records[place])} {number}" for place, number in rows]
        outputs = author.draw(prompts, names, by=self.by, call=self.call)
        gains = author.gains(prompts, outputs, [place for place, _ in rows], by=self.by, looks=self.looks, names=names)
        done = list(records)
        for count, place in enumerate(own):
            several = range(count * self.candidates, (count + 1) * self.candidates)
            best, worst = max(several, key=gains.__getitem__), min(several, key=gains.__getitem__)
            done[place] = records[place]._replace(first=outputs[best], second=outputs[worst], scores=(gains[best], gains[worst]))
        return done

    def settled(self, records: list[Any]) -> list[Any]:
        """Own pairs by rank: those furthest apart count, as ``keep`` says, and those that are not apart do not."""
        apart = {place: record.scores[0] - record.scores[1] for place, record in enumerate(records) if record.annotator == OWN}
        ranked = sorted(apart, key=lambda place: -apart[place])
        kept = {place for place in ranked[: math.ceil(self.keep * len(ranked))] if apart[place] > 0}
        done = list(records)
        for place in apart:
            done[place] = records[place]._replace(strength=1.0 if place in kept else math.nan)
        return done


# Parts


def _name(record: Any) -> str:
    """What seeds are made of: another one in every pass."""
    return f"{record.position} {record.id}"


def _good(record: Any) -> Any:
    """The output that is taken to be good; None for a record that names none."""
    if isinstance(record, Pair) and record.strength != 0.5:
        return record.first if record.strength > 0.5 else record.second
    return record.output if isinstance(record, Thumb) and record.label > 0.5 else None


def _chance(given: float, drawn: float) -> float:
    """``sigmoid(given - drawn)``; NaN where one of them is not known."""
    apart = given - drawn
    return apart if math.isnan(apart) else 1 / (1 + math.exp(-max(min(apart, 500.0), -500.0)))
