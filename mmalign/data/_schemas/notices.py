"""What is said of a file's columns, once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mmalign.data._schemas.columns import listed


class Notice:
    """Says which columns nobody reads, each once."""

    def __init__(self, what: str):
        self.what, self.reported = what, set[str]()

    def __call__(self, unread: Mapping[str, Any]) -> None:
        new = sorted(set(unread) - self.reported)
        if new:
            self.reported.update(new)
            warnings.warn(f"{self.what}: nobody reads column{'s' * (len(new) > 1)} {listed(new)}", stacklevel=2)
