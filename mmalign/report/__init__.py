"""One self-contained HTML page per run: ``build(run_folder)`` writes ``report.html`` beside the numbers that it shows."""

from __future__ import annotations

from pathlib import Path

__all__ = ["build", "in_a_sentence"]


def build(run_folder: str | Path) -> Path:
    """Writes ``<run_folder>/report.html`` from what the folder holds now, and returns its path.

    At any moment of a run: whatever is not there yet is named on the page. Nothing on it is fetched from elsewhere.

    Errors: UserError where ``run_folder`` is no folder, or the page cannot be written there.
    """
    from mmalign.files import write_text
    from mmalign.report.page import render
    from mmalign.report.read import read
    from mmalign.types import UserError

    run = read(Path(run_folder))
    page = render(run)
    try:
        return write_text(run.path / "report.html", page)
    except OSError as error:
        raise UserError(f"report: {run.path / 'report.html'} cannot be written: {error}") from error


def in_a_sentence(run_folder: str | Path) -> str:
    """What a run came to, in the sentence that its page begins with. Errors: UserError where ``run_folder`` is no folder."""
    from mmalign.report import page
    from mmalign.report.read import read

    return page.in_a_sentence(read(Path(run_folder)))
