"""The command that shows runs as they go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import app, in_a_browser, mistakes_as_lines, printed


@app.command()
def watch(
    context: typer.Context,
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs, or folders of runs; runs/ by default.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 shows them to other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8300,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write them side by side into this .html instead, as they are now.")] = None,
) -> None:
    """Look at runs while they train: pages that go on by themselves, of each run and of several side by side."""
    with mistakes_as_lines(context):
        from mmalign.rooms import find

        if out is not None:
            typer.echo(f"comparison: {find('mmalign.commands', 'side_by_side')(runs or ['runs'], out=str(out))}")
            return
        find("mmalign.commands", "watch")(runs or ["runs"], host=host, port=port, ready=in_a_browser(show), say=printed)
