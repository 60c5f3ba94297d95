"""``broken.jsonl``: records of a data set that could not be read, a line for each: ``{"id": "train:17", "why": "truncated"}``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmalign.files import write_text


class Broken:
    """The records that a run has named. A line that a crash has torn is left out, and its record named anew where it is met again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "broken.jsonl"
        self.why: dict[str, str] = {}
        lines = self.path.read_bytes().split(b"\n") if self.path.is_file() else []
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # empty, or torn
                continue
            if isinstance(row, dict) and isinstance(row.get("id"), str):
                self.why[row["id"]] = str(row.get("why"))

    def add(self, broken: Mapping[str, str]) -> dict[str, str]:
        """Writes those of ``broken`` (id -> why) that are not named yet, and returns them."""
        new = {name: why for name, why in broken.items() if name not in self.why}
        if new:
            self.why |= new
            lines = (json.dumps({"id": name, "why": why}, ensure_ascii=False) for name, why in self.why.items())
            write_text(self.path, "".join(f"{line}\n" for line in lines))
        return new
