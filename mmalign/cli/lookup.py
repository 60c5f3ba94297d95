"""Commands that look things up: what there is, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmalign.cli.app import app, completed_kinds, completed_names, mistakes_as_lines

if TYPE_CHECKING:
    from rich.console import Console

    from mmalign.lookup.catalogue import Listing
    from mmalign.lookup.docstrings import Explanation


@app.command(name="list")
def list_(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="methods, rewards, guidance, ...; none: the kinds.", autocompletion=completed_kinds)] = "",
) -> None:
    """List what there is: methods, rewards, guidance, kernels, configs, ..., a line each."""
    with mistakes_as_lines(context):
        from mmalign.cli.printing import print_rows
        from mmalign.lookup.catalogue import everything, words

        if not kind:
            print_rows("mmalign list KIND", ("kind", "what it is", "how many"), [(word, what, str(count)) for word, what, count in words()])
            return
        rows = everything(kind)
        papers = any(listing.paper for listing in rows)
        columns = ("name", "what it is", *(["paper"] if papers else []))
        print_rows(kind, columns, [(listing.name, listing.meaning, *([listing.paper] if papers else [])) for listing in rows])


@app.command()
def coverage(
    context: typer.Context,
    status: Annotated[str, typer.Argument(metavar="[complete|partial|missing|out]", help="Systems of one status alone.")] = "",
    page: Annotated[Path | None, typer.Option(help="Write the whole table, and the methods by what they learn from, as Markdown.")] = None,
) -> None:
    """Show which published systems are here, under which names, and what lacks of the others."""
    with mistakes_as_lines(context):
        from mmalign.cli.printing import print_rows
        from mmalign.files import write_text
        from mmalign.lookup import coverage as table
        from mmalign.types import UserError

        rows, counted = table.systems(), table.counts(table.systems())
        if status and status not in counted:
            raise UserError(f"coverage: got {status!r}, takes {', '.join(counted)}")
        if page is not None:
            typer.echo(f"coverage: {write_text(page, table.page(rows))}")
            return
        shown = [(row.id, row.modality, row.status, " ".join(row.here), row.lacks) for row in rows if status in ("", row.status)]
        print_rows("coverage", ("system", "modality", "status", "here", "what lacks"), shown)
        of_field = sum(counted.values()) - counted["out"]
        typer.echo(f"of {of_field} systems: {', '.join(f'{count} {word}' for word, count in counted.items() if word != 'out')}")


@app.command()
def explain(  # an option for each thing that is asked
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Any name of `mmalign list`, or an import path.", autocompletion=completed_names)],
    changes: Annotated[list[str] | None, typer.Argument(help="With --model: keywords of the method, clip=1e-5.")] = None,
    model: Annotated[str, typer.Option(help="A hub id or folder: what the method's numbers come to there, in nats.")] = "",
    height: Annotated[int | None, typer.Option(min=1, help="Of the model's outputs, pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the model's outputs, pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of the model's videos.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of denoising.")] = None,
    kind: Annotated[str | None, typer.Option("--class", help="The pipeline's class, where nothing else tells it.")] = None,
) -> None:
    """Explain a method, a reward, a way of guidance, a config, ...: formula, every keyword, paper, needs, an example."""
    with mistakes_as_lines(context):
        if model:
            from mmalign.commands.units import of_named

            for line in of_named(name, changes or [], model, {"height": height, "width": width, "num_frames": frames}, steps, kind):
                typer.echo(line)
            return
        refuse_without_model(changes, (height, width, frames, steps, kind))
        from mmalign.cli.printing import console
        from mmalign.lookup.catalogue import function, lookup

        out = console()
        for number, listing in enumerate(lookup(name)):
            out.print("\n" if number else "", end="")
            if listing.kind == "configs":
                _config(out, listing)
            elif not listing.kind and listing.place:
                _outside(out, listing)
            else:
                _function(out, listing, function(listing))


def refuse_without_model(changes: list[str] | None, sizes: tuple[Any, ...]) -> None:
    """Errors: UserError for sizes, or keywords of a method, without the model that they are of."""
    from mmalign.types import UserError

    if changes or any(size is not None for size in sizes):
        raise UserError("explain: sizes and keywords say what a method's numbers come to for a model, and none is given; takes --model too")


def _config(out: Console, listing: Listing) -> None:
    from pathlib import Path

    from rich.markup import escape
    from rich.syntax import Syntax

    from mmalign.lookup.catalogue import comment

    path = Path(listing.place)
    out.print(f"[bold]{listing.name}[/bold]  a config\n\n{escape(comment(path))}\n")
    out.print(Syntax(_body(path.read_text(encoding="utf-8")), "yaml", background_color="default"))
    out.print(f"\nmmalign train {listing.name}")


def _body(text: str) -> str:
    """A YAML file without the comment at its head."""
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[first:]).strip()


def _function(out: Console, listing: Listing, made_by: Callable[..., Any]) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    from mmalign.lookup.docstrings import explanation
    from mmalign.lookup.usage import needs, written

    docstring = explanation(made_by)
    title = docstring.name if listing.setting is None else f"{listing.name}, {docstring.name}"
    out.print(f"[bold]{title}[/bold]  {escape(docstring.meaning)}")
    if docstring.formula:
        out.print(Padding(escape(docstring.formula), (1, 2, 0, 2)))
    if docstring.defaults:
        out.print()
        _keywords(out, docstring, made_by)
    sections = {
        "": docstring.remarks,
        "Paper": docstring.paper,
        "Deviations": docstring.deviations,
        "Errors": docstring.errors,
        "Needs": needs(listing, made_by),
    }
    for head, text in sections.items():
        if text:
            out.print(f"\n[bold]{head}[/bold]{'  ' if head else ''}{escape(text)}")
    _dialects(out, made_by)
    if docstring.examples:
        out.print("\n[bold]Examples[/bold]")
        for line in docstring.examples.splitlines():
            out.print(f"  {escape(line)}", soft_wrap=True)
    out.print(f"\n[bold]Source[/bold]  {listing.place or made_by.__module__}")
    for language, line in written(listing, docstring).items():
        out.print(f"  {language:<8}{escape(line)}")


def _outside(out: Console, listing: Listing) -> None:
    """What the source of something outside of mmalign says, which is not imported for that."""
    from rich.markup import escape

    from mmalign.lookup.external_code import source_signature

    if source := source_signature(listing.name):
        out.print(f"[bold]{escape(listing.name)}[/bold]  outside of mmalign; read, and not imported\n\n{escape(source.signature)}\n")
        out.print(escape(source.docstring) + f"\n\n[bold]Source[/bold]  {source.file}:{source.line}", soft_wrap=True)


def _keywords(out: Console, docstring: Explanation, made_by: Callable[..., Any]) -> None:
    """A row for each keyword: name, what it takes, its default, what it means."""
    from rich.markup import escape
    from rich.table import Table

    from mmalign.lookup.usage import keywords

    rows = Table.grid(padding=(0, 2))
    for names, *others in keywords(docstring, made_by):
        rows.add_row(f"[bold]{escape(names)}[/bold]", *map(escape, others))
    out.print(rows)


def _dialects(out: Console, made_by: Callable[..., Any]) -> None:
    from rich.markup import escape

    from mmalign.lookup.dialects import dialects

    known = dialects(made_by)
    for dialect in known:
        settings = ", ".join(f"{name}={value!r}" for name, value in dialect.settings.items()) or "as it is"
        out.print(f"\n[bold]{escape(dialect.who)}[/bold]  {escape(settings)}\n  {escape(dialect.note)}")
    if known:
        who = known[0].who.split()[0]
        out.print(f"\nIn a config: [bold]method: {{use: {made_by.__name__}, like: {escape(who)}}}[/bold]")
