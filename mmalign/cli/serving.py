"""The command that serves rewards."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import Config, Overrides, app, configured, mistakes_as_lines


@app.command("serve-reward")
def serve_reward(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    requirements: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of pip's: serve in an environment of its own, made of it once.")
    ] = None,
    with_stdin: Annotated[bool, typer.Option("--with-stdin", help="Stop where standard input ends, too.")] = False,
) -> None:
    """Answer for the rewards of a config (rewards: {NAME: {use: ...}}) over HTTP, for runs that take them as {use: served, url: ...}, and
    for its oracle: {use: ...}, as {use: served_pairs, url: ...}."""
    with mistakes_as_lines(context):
        from mmalign.config import build
        from mmalign.serving.environments import INSIDE, environment, python_of
        from mmalign.types import UserError

        node: dict[str, Any] = {"use": "serve_reward", **configured(config, overrides)}
        if node["use"] != "serve_reward":
            raise UserError(f"{config}: use: got {node['use']!r}, takes serve_reward, or no such key: a config of rewards alone")
        wanted = requirements or node.get("requirements")
        if wanted is not None and INSIDE not in os.environ:
            place = environment(wanted, lambda line: typer.echo(line, err=True))
            words = [python_of(place), "-m", "mmalign", *(["--debug"] if context.obj else []), "serve-reward", config, *(overrides or [])]
            sys.stdout.flush()
            os.execve(words[0], [*words, *(["--with-stdin"] if with_stdin else [])], {**os.environ, INSIDE: str(place)})
        build(node, with_stdin=with_stdin)
