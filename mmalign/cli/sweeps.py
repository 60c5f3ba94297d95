"""The command that trains many runs of one config."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Config, app, configured, mistakes_as_lines


@app.command()
def sweep(
    context: typer.Context,
    config: Config,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG...] key=a,b ...", help="method=dpo,ipo beta=.05,.1 run.seed=0,1; one value changes all runs."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all runs; sweeps/NAME by default, of the config's name.")] = None,
    processes: Annotated[int, typer.Option(metavar="N", help="Runs at once.")] = 1,
    sort: Annotated[str | None, typer.Option(help="The column that orders the table; by default the first judge.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser at the end.")] = False,
) -> None:
    """Train a config once for every combination of values, and draw what each nat of KL bought. The same again continues."""
    with mistakes_as_lines(context):
        from mmalign.cli.printing import print_rows
        from mmalign.report.sweep import headline, terminal
        from mmalign.rooms import find

        configs = [config, *(word for word in words or [] if "=" not in word)]
        for name in configs:
            configured(name, None)  # says what it imports from elsewhere
        place = out or Path("sweeps") / "-".join(name.removesuffix(".yaml").replace("/", "_") for name in configs)
        changes = [word for word in words or [] if "=" in word]
        swept = find("mmalign.commands", "sweep")(configs, changes, out=place, processes=processes, sort=sort, say=typer.echo)
        columns, rows, failed = terminal(swept.table)
        print_rows(headline(swept.table), columns, rows, head=True, failed=failed)
        typer.echo(f"sweep:  {swept.path}\nreport: {swept.page}")
        if show:
            import webbrowser

            webbrowser.open(swept.page.as_uri())
        if swept.interrupted:
            typer.echo("interrupted; the same command continues", err=True)
            raise typer.Exit(128 + signal.Signals[swept.interrupted])
        if swept.failed:
            raise typer.Exit(1)
