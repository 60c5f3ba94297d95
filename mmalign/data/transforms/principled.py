"""Pairs whose prompt says by what the answers are judged."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.arguments.ranges import Count, Proportion, Seed
from mmalign.conversations import JUDGED_BY, said_after
from mmalign.data._reading.around import Around, inside, refuse_two_prompts
from mmalign.records import Pair, Record, Records
from mmalign.types import UserError


def principled(
    of: Records | Sequence[Record], *, principles: dict[str, list[str]], at_once: Count = 3, against: Proportion = 0.5,
    words: str = JUDGED_BY, seed: Seed = 0,
) -> Principled:  # fmt: skip
    """Pairs that were rated by several principles, under some of them, which the prompt names: who is better follows from what is asked.

    Of those that rate both answers ``at_once`` are drawn for each record, some of them turned into their opposites; the one by which the
    two differ most, whichever way it then points, makes the label. A reward model that is trained on these reads principles, and takes
    others in a run (the reward ``by_principles``): what a policy is to be is said, and not collected again.

    Args:
        of: pairs with ratings of both answers by principle (``ratings_chosen`` and ``ratings_rejected``).
        principles: name -> ``[sentence, sentence of its opposite]``.
        at_once: of a record; fewer where fewer are rated.
        against: how probably each is turned into its opposite.
        words: what is put behind the last thing that the prompt's user says; ``{principles}`` are the sentences, one in a line.
        seed: of what is drawn, with the record's id and prompt: a record is under the same principles at every visit.

    A pair in which no principle that is drawn sees a difference is a tie.

    Paper: SALMON: Self-Alignment with Principle-Following Reward Models, arXiv 2310.05910, sec. 3.2 (recalled: the principle with the most
    pronounced difference of scores labels the pair).

    Errors: UserError for principles that are no two sentences each, words without ``{principles}``, a record that is no pair, and 1,000 in
    a row that no principle rates.

    Examples:
        >>> from mmalign.records import Pair
        >>> pair = Pair("Why?", "so", "because of it", ratings=({"brief": 5.0}, {"brief": 1.0}))
        >>> rules = {"brief": ["Be brief.", "Be long."]}
        >>> both = [next(principled([pair], principles=rules, against=p, words=" {principles}").stream(seed=0)) for p in (0.0, 1.0)]
        >>> [(one.prompt, one.strength) for one in both]
        [('Why? Be brief.', 1.0), ('Why? Be long.', 0.0)]
    """
    for name, sentences in principles.items():
        if isinstance(sentences, str) or len(sentences) != 2 or not all(isinstance(one, str) and one for one in sentences):
            raise UserError(f"records.principles.{name}: got {sentences!r}, takes [sentence, sentence of its opposite]")
    if not principles:
        raise UserError("records.principles: got none, takes at least one {name: [sentence, sentence of its opposite]}")
    if "{principles}" not in words:
        raise UserError(f"records.words: got {words!r}, takes words with {{principles}} in them")
    return Principled(inside(of), principles, at_once=at_once, against=against, words=words, seed=seed)


class Principled(Around):
    """See ``principled``; as ``records.Records``."""

    useless = "are rated by none of the principles"

    def __init__(
        self, source: Records, principles: Mapping[str, Sequence[str]], *, at_once: int, against: float, words: str, seed: int
    ):  # fmt: skip
        super().__init__(source)
        self.principles, self.at_once, self.against, self.words, self.seed = principles, at_once, against, words, seed

    def _change(self, record: Any) -> Any:
        refuse_two_prompts(record)
        if not isinstance(record, Pair):
            raise UserError(f"records.of: got a {type(record).__name__}, takes pairs")
        first, second = record.ratings or ({}, {})
        gaps = {name: first[name] - second[name] for name in self.principles if name in first and name in second}
        known = [name for name, gap in gaps.items() if gap == gap]
        if not known:
            return None
        name = f"{self.seed} {record.id} {record.prompt}"
        rng = random.Random(hashlib.blake2b(name.encode()).digest())
        drawn = rng.sample(known, min(self.at_once, len(known)))
        turned = {name: rng.random() < self.against for name in drawn}
        ahead = max((-gaps[name] if turned[name] else gaps[name] for name in drawn), key=abs)
        rules = "\n".join(self.principles[name][turned[name]] for name in drawn)
        strength = 0.5 if ahead == 0 else float(ahead > 0)
        return record._replace(prompt=said_after(record.prompt, self.words.replace("{principles}", rules)), strength=strength)
