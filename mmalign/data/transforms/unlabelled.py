"""Pairs whose labels nobody sees."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

from mmalign.data._reading.around import Around, inside
from mmalign.records import Pair, Record, Records
from mmalign.types import UserError


def unlabelled(of: Records | Sequence[Record]) -> Unlabelled:
    """Pairs without their labels and scores: two outputs of a prompt, of which it is not known who is better.

    For ``meta_reward``, beside others that have labels (``mixture``): what a policy writes now, whose answers nobody has compared.

    of: pairs.

    Errors: UserError for a record that is no pair.

    Examples:
        >>> from mmalign.records import Pair
        >>> next(unlabelled([Pair("Why?", "so", "because", scores=(0.0, 1.0))]).stream(seed=0)).strength
        nan
    """
    return Unlabelled(inside(of))


class Unlabelled(Around):
    """See ``unlabelled``; as ``records.Records``."""

    def _change(self, record: Any) -> Any:
        if not isinstance(record, Pair):
            raise UserError(f"records.of: got a {type(record).__name__}, takes pairs")
        return record._replace(strength=nan, scores=(nan, nan), labels={}, ratings=(), wrong=None)
