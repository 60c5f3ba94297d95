"""Thumbs whose bad rows come from the prompts that good ones come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from mmalign.arguments.ranges import Count, Positive, Seed
from mmalign.conversations import question
from mmalign.data._reading.around import Around, inside
from mmalign.records import Record, Records, Thumb, Undecoded
from mmalign.types import UserError


def matched(of: Records | Sequence[Record], *, most: Positive = 10.0, look: Count = 1024, seed: Seed = 0) -> Matched:
    """Thumbs up, and thumbs down on prompts like theirs: bad rows count by ``w(x) = p(x | good) / p(x | bad)``.

    People praise one kind of prompts and complain of another; a classifier of rows then learns which prompt it sees. BCO weighs bad rows
    by that ratio, so that both are means over the prompts of good ones. Here a weight is how often a row is used: good rows are kept
    with probability 1 / c, bad ones with ``w / c``, c the largest weight, drawn anew in every pass.

    ``w = P(good | x) / P(bad | x) * n_bad / n_good`` by logistic regression on the prompts' words (TF-IDF), of ``look`` records.

    Args:
        of: thumbs; a label of one half or more is up.
        most: bound of a weight. look: how many records the classifier sees, in the order of seed 0. seed: of what is kept.

    Paper: Binary Classifier Optimization for Large Language Model Alignment, https://arxiv.org/abs/2404.04656, its density ratio (UDM in
    TRL). Deviations: rows are used as often as they would weigh, which is the same loss in the mean and lets any method have it; the
    classifier reads words, where theirs has embeddings; TRL leaves out ``n_bad / n_good``.

    Errors: UserError for records that are no thumbs, and where those that are seen are all good, or all bad.
    """
    source = inside(of)
    weigh = _ratio(list(islice((source.undecoded if isinstance(source, Undecoded) else source.stream)(seed=0), look)), most)
    return Matched(source, weigh, seed)


class Matched(Around):
    """See ``matched``; as ``records.Records``. weigh: prompt -> how probably a bad row of it, and how probably any good one, is kept."""

    useless = "were not drawn: all bad, of prompts that no good row has"

    def __init__(self, source: Records, weigh: Callable[[Any], tuple[float, float]], seed: int):
        super().__init__(source)
        self.weigh, self.seed = weigh, seed

    def _change(self, record: Any) -> Any:
        _refuse(record)
        bad, good = self.weigh(record.prompt)
        drawn = int.from_bytes(hashlib.sha256(f"{self.seed}:{record.position}".encode()).digest()[:6], "big") / 2**48
        kept = good if record.label >= 0.5 else bad
        return record if drawn < kept else None


def _ratio(seen: Sequence[Any], most: float) -> Callable[[Any], tuple[float, float]]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    for record in seen:
        _refuse(record)
    up = [record.label >= 0.5 for record in seen]
    if len(set(up)) < 2:
        raise UserError(f"records.of: got {len(seen)} thumbs that are all {'up' if any(up) else 'down'}, takes both kinds")
    words = TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]")
    classifier = LogisticRegression(C=10.0, max_iter=1000).fit(words.fit_transform([question(record.prompt) for record in seen]), up)
    prior = (len(up) - sum(up)) / sum(up)

    def weight(prompt: Any) -> float:
        bad, good = classifier.predict_proba(words.transform([question(prompt)]))[0]
        return float(min(most, prior * good / max(bad, 1e-12)))

    largest = max(1.0, *(weight(record.prompt) for record in seen))
    return lambda prompt: (min(1.0, weight(prompt) / largest), 1 / largest)


def _refuse(record: Any) -> None:
    if not isinstance(record, Thumb):
        raise UserError(f"records.of: got a {type(record).__name__}, takes thumbs")
