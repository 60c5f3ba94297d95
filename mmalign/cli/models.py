"""Commands that look at a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import app, mistakes_as_lines


@app.command("inspect")
def inspect_model(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A hub id, a folder, a world, or a class of diffusers or transformers (a tiny twin).")
    ],
    call: Annotated[
        list[str] | None, typer.Option("--call", metavar="KEY=VALUE", help="An argument of its call; as often as needed.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the YAML to start from.")] = None,
) -> None:
    """Look at a model: what is trained, how it is guided, whether replay is exact, what it costs, and a YAML to start from."""
    with mistakes_as_lines(context):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        result = _inspected(model, call or [], dtype)
        table = Table(title=model, title_justify="left", show_header=False)
        for row in result.rows:
            table.add_row(f"[bold]{row.name}[/bold]", f"[red]failed:[/red] {escape(row.value)}" if row.failed else escape(row.value))
        Console().print(table)
        typer.echo(result.start)
        if out is not None:
            out.write_text(result.start, encoding="utf-8")


def _inspected(model: str, words: list[str], dtype: str | None) -> Any:
    from mmalign.commands._models import keywords
    from mmalign.config import build_part
    from mmalign.policies.inspecting.inspection import inspection
    from mmalign.policies.inspecting.language import is_language, language_inspection, language_model
    from mmalign.policies.inspecting.loading import LoadedPipeline, load_pipeline
    from mmalign.rooms import index
    from mmalign.types import UserError

    call = keywords(words)
    if is_language(model):
        if call:
            raise UserError(f"--call: {model} is a language model, whose call is not tried here; takes none")
        twin = model.isidentifier()
        pair = language_model(model, dtype=dtype)
        return language_inspection(*pair, node=f"hub/id-of-a-{model}" if twin else model, loaded=not twin)
    if model in index("mmalign.worlds"):
        node = {"use": model}
        built = build_part({"pipeline": node}, "pipeline")
        if isinstance(built, tuple):
            return language_inspection(*built, node=node)
        loaded = LoadedPipeline(built, {}, node)
    else:
        loaded = load_pipeline(model, dtype=dtype)
    return inspection(loaded.pipe, call=call, trial_arguments=loaded.trial_arguments, node=loaded.node)
