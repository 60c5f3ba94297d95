"""Commands that look at a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import Config, Overrides, app, configured, echo, mistakes_as_lines

MERGING = ("merge", "evolve", "shift")


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
        from mmalign.cli.printing import print_rows

        result = _inspected(model, call or [], dtype)
        rows = [(row.name, f"failed: {row.value}" if row.failed else row.value) for row in result.rows]
        print_rows(model, ("", ""), rows, failed=[number for number, row in enumerate(result.rows) if row.failed])
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


@app.command()
def merge(context: typer.Context, config: Config, overrides: Overrides = None) -> None:
    """Make one model of several (merge), move an adapter's singular values by rewards (evolve), or rows along a probe (shift)."""
    with mistakes_as_lines(context):
        from mmalign.config import build
        from mmalign.types import UserError

        node: dict[str, Any] = configured(config, overrides)
        if node.get("use") not in MERGING:
            raise UserError(f"use: got {node.get('use')!r}, takes {', '.join(MERGING)}")
        echo(f"merge: {build(node)}")
