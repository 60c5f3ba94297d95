"""The command that tries an installation, and whether its runs survive being killed."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from mmalign.cli.app import app, mistakes_as_lines

MARKS = {None: "missing", True: "ok", False: "failed"}


@app.command()
def selftest(
    context: typer.Context,
    kill9: Annotated[int, typer.Option(min=0, help="Kill so many runs of each kind at random instants, resume and compare them.")] = 0,
    only: Annotated[list[str] | None, typer.Option("--only", help="A kind: online, offline, ...; all by default.")] = None,
    processes: Annotated[list[int] | None, typer.Option(min=1, help="Processes of each run; 1 and 2 by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the instants.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where its folder is made for a while; the system's by default.")] = None,
) -> None:
    """Try this installation: packages, devices, files, and a small run of every recipe; with --kill9, runs that are killed."""
    with mistakes_as_lines(context), _tidy(), tempfile.TemporaryDirectory(prefix="mmalign-", dir=folder) as place:
        if kill9:
            _killed(Path(place).resolve(), kill9, only or [], tuple(processes or (1, 2)), seed)
            return
        from mmalign.selftest.installation import installation

        findings = []
        for finding in installation(Path(place).resolve()):
            typer.echo(f"{MARKS[finding.fine]:<8}{finding.name:<24}{finding.what}")
            findings.append(finding)
        failed = [finding.name for finding in findings if finding.fine is False]
        typer.echo(f"failed: {'; '.join(failed)}" if failed else "mmalign works here")
        if failed:
            raise typer.Exit(1)


@contextmanager
def _tidy() -> Iterator[None]:
    """A SIGTERM ends the block as an exception does, so that no process and no folder is left."""

    def end(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _killed(root: Path, count: int, only: list[str], processes: tuple[int, ...], seed: int) -> None:
    from rich.progress import Progress

    from mmalign.cli.printing import print_rows
    from mmalign.selftest.kills import Killed, kills
    from mmalign.selftest.trials import trials, warm
    from mmalign.types import UserError

    some = [trial for trial in trials() if not only or trial.name in only]
    if unknown := sorted(set(only) - {trial.name for trial in trials()}):
        raise UserError(f"--only: got {unknown[0]!r}, takes {', '.join(trial.name for trial in trials())}")
    sizes = {trial.name: [size for size in processes if size >= trial.least] for trial in some}
    if none := next((trial for trial in some if not sizes[trial.name] and only), None):
        raise UserError(f"--processes: got {', '.join(map(str, processes))} for {none.name}, takes {none.least} or more")
    total = count * sum(map(len, sizes.values()))
    # no thread of its own draws the bar: a process that was forked while it does would wait for it for ever
    with Progress(auto_refresh=False, disable=not sys.stdout.isatty()) as bar, warm(some, root):
        shown_wrong = Counter[tuple[str, int]]()
        task = bar.add_task("killed", total=total)
        bar.refresh()

        def tell(row: Killed, over: int) -> None:
            for wrong in row.wrong[shown_wrong[row.name, row.processes] :]:
                bar.console.print(f"{_called(row)}: {wrong}", markup=False, highlight=False, soft_wrap=True)
            shown_wrong[row.name, row.processes] = len(row.wrong)
            bar.update(task, completed=over, description=f"killed {row.name}, {row.processes}")
            bar.refresh()
            if row.kills == count:
                bar.console.print(_line(row), markup=False, highlight=False, soft_wrap=True)

        table = kills([(trial.name, trial.train, sizes[trial.name]) for trial in some], count, root, seed=seed, tell=tell)
    rows = [(row.name, str(row.processes), str(row.kills), str(row.identical), f"{row.seconds:.1f}") for row in table]
    print_rows("", ("runs of", "processes", "killed", "identical", "seconds left alone"), rows, head=True)
    if any(row.wrong or row.kills < count for row in table):
        raise typer.Exit(1)


def _line(row: Any) -> str:
    return f"{_called(row)}: {row.identical} of {row.kills} identical ({row.late} had ended before they were killed)"


def _called(row: Any) -> str:
    return f"{row.name}, {row.processes} process{'es' * (row.processes > 1)}"
