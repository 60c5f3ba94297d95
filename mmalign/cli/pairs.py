"""The command that makes preference data."""

from __future__ import annotations

from typing import Any

import typer

from mmalign.cli.app import Config, Overrides, Processes, Shared, app, configured, echo, mistakes_as_lines, several

RECIPES = ("make_pairs", "make_rejected", "make_edits", "make_jigsaws", "make_rubrics", "make_rated_pairs", "keep_best")


@app.command(cls=Shared)
def pairs(context: typer.Context, config: Config, overrides: Overrides = None, processes: Processes = "1") -> None:
    """Make preference pairs, edited prompts, puzzles or rubrics, as a config of make_pairs, make_rejected, make_edits, ... describes."""
    with mistakes_as_lines(context):
        from mmalign.config import build
        from mmalign.distributed.team import joined
        from mmalign.files import plain
        from mmalign.types import UserError

        several(context, processes)
        node: dict[str, Any] = configured(config, overrides)
        if node.get("use") not in RECIPES:
            raise UserError(f"use: got {node.get('use')!r}, takes {', '.join(RECIPES)}")
        joined().agree("config", plain(node))
        counts = build(node)
        echo(f"{node['out']}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
