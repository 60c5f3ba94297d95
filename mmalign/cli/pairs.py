"""The command that makes preference data."""

from __future__ import annotations

from typing import Any

import typer

from mmalign.cli.app import Config, Overrides, app, configured, mistakes_as_lines

RECIPES = ("make_pairs", "make_rejected")


@app.command()
def pairs(context: typer.Context, config: Config, overrides: Overrides = None) -> None:
    """Make a file of preference pairs with a policy, as a config of make_pairs or make_rejected describes."""
    with mistakes_as_lines(context):
        from mmalign.config import build
        from mmalign.types import UserError

        node: dict[str, Any] = configured(config, overrides)
        if node.get("use") not in RECIPES:
            raise UserError(f"use: got {node.get('use')!r}, takes {' or '.join(RECIPES)}")
        counts = build(node)
        typer.echo(f"{node['out']}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
