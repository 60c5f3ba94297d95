"""What a run says when it has ended: what came of it, what it cost, where it is, and what to do next."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INDENT = " " * 8
PLAIN = str.maketrans({"\N{RIGHTWARDS ARROW}": "->", "\N{MINUS SIGN}": "-", "\N{NO-BREAK SPACE}": " "})  # for any terminal's letters


def ending(folder: Path, summary: Mapping[str, Any], *, scores: bool = False, exports: bool = True) -> Iterator[str]:
    """Lines about a run in a folder, given its summary; on a terminal none is wider than it.

    scores: whether it trained a reward model, which makes no samples. exports: whether there is something for other libraries in it.
    """
    from mmalign.report import in_a_sentence

    page = folder / "report.html"
    found = f"found:  {in_a_sentence(folder).translate(PLAIN)}"
    yield textwrap.fill(found, shutil.get_terminal_size().columns, subsequent_indent=INDENT) if sys.stdout.isatty() else found
    yield f"cost:   {', '.join(_cost(summary))}"
    yield f"run:    {folder}"
    if page.is_file():  # a full disk has none, which was said
        yield f"report: {page}"
    name = folder.name if folder.parent == Path("runs").resolve() else str(folder)
    use = f"rewards: {{learned: {{use: trained, run: {folder}}}}}" if scores else f"mmalign sample {name}"
    offers = [use, *([f"mmalign export {name}"] if exports else []), f"mmalign report {name} --open"]
    yield f"next:   {_next(name, str(summary.get('status')), ', '.join(offers))}"


def _cost(summary: Mapping[str, Any]) -> Iterator[str]:
    from mmalign.runs.progress import clock

    yield f"{clock(float(summary.get('train_seconds') or 0.0))} of training"
    kl = summary.get("kl")
    if isinstance(kl, (int, float)) and kl == kl:
        yield f"KL {kl:.3g} nats from where it began"


def _next(name: str, status: str, offers: str) -> str:
    if status == "interrupted":
        return "the same command with --resume"
    if status in ("learned nothing", "not finite"):
        return f"mmalign report {name} --open says why"
    return offers
