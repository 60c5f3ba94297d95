"""The command that brings configs of earlier versions up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import app, mistakes_as_lines


@app.command()
def migrate(
    context: typer.Context,
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="YAML files of version 0.1.0.")],
    write: Annotated[bool, typer.Option("--write", help="Write them; without it, what would change is shown alone.")] = False,
) -> None:
    """Bring configs of version 0.1.0 to this one, comments kept: shows what changes, and names what cannot be translated."""
    with mistakes_as_lines(context):
        from mmalign.config import check, load
        from mmalign.migration.migrate import migrate as migrated
        from mmalign.types import UserError

        mistakes = list[str]()
        for path in configs:
            try:
                config = migrated(path, write=write)
            except UserError as error:
                mistakes.append(str(error))
                continue
            if config.diff:
                typer.echo(config.diff)
            mistakes.extend(f"{path}: {line}" for line in config.refused)
            for note in config.notes:
                typer.echo(f"{path}: {note}", err=True)
            if not config.changed and not config.refused:
                typer.echo(f"{path}: has nothing of 0.1.0 in it", err=True)
            elif not config.refused and write:
                typer.echo(f"{path}: written", err=True)
                mistakes.extend(f"{path}: {line}" for line in check(load(path)))
        if mistakes:
            raise UserError("\n".join(mistakes))
