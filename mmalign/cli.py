"""The command line. Nothing heavy is imported before a command needs it, so that ``mmalign --help`` answers at once.

Mistakes of the user end in one line per mistake and exit code 2; anything else in one line and exit code 1; ``--debug`` shows the
traceback instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmalign import __version__

if TYPE_CHECKING:
    from mmalign.dialects import Explanation

DEMO = "configs/digits/demo.yaml"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a short name like digits/flow_grpo.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="key.sub=value", help="Changes to the config.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its name under runs/.")]


def main() -> None:
    """The ``mmalign`` command. ``--debug`` may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # so that `use: my_module.my_method` finds a file of the user's
    app(args=arguments)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmalign {__version__}")
        raise typer.Exit


@app.callback()
def settings(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Alignment of generative models: image, video, text and vision-language."""
    context.obj = debug


@app.command()
def train(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of this config where it stopped.")] = False,
) -> None:
    """Train what a config describes; everything in it is checked before anything is built."""
    with _mistakes_as_lines(context):
        from mmalign.config import load

        _train(load(config, overrides or []), resume=resume)


@app.command()
def demo(
    context: typer.Context,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs, each with its own seed.")] = 1,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser at the end.")] = False,
) -> None:
    """Align a small generator of real digits on this machine's CPU, and show what it gained and what it cost."""
    with _mistakes_as_lines(context):
        from mmalign.config import load, resource

        report = None
        for seed in range(seeds):
            node = load(resource(DEMO), overrides or [])
            node["seed"] = int(node.get("seed", 0)) + seed
            node["name"] = _fresh_name(Path(node.get("runs", "runs")), str(node.get("name", "demo")))
            report = _train(node)
        if show and report is not None:
            import webbrowser

            webbrowser.open(report.as_uri())


@app.command()
def check(context: typer.Context, config: Config, overrides: Overrides = None) -> None:
    """Resolve and check a config without loading a model."""
    with _mistakes_as_lines(context):
        from mmalign.config import check as mistakes
        from mmalign.config import load
        from mmalign.types import UserError

        if lines := mistakes(load(config, overrides or [])):
            raise UserError("\n".join(lines))
        typer.echo(f"{config}: no mistakes found")


@app.command()
def rehearse(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    kind: Annotated[str | None, typer.Option("--class", metavar="NAME", help="The pipeline's class, where nothing else tells it.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A new folder that keeps the rehearsal's runs.")] = None,
) -> None:
    """Go through every phase of a run on the CPU with a tiny twin of its model, before a GPU is rented."""
    with _mistakes_as_lines(context):
        from mmalign.config import load
        from mmalign.rooms import find

        def say(phase: Any) -> None:
            typer.echo(f"{phase.name:<9}{phase.seconds:6.1f} s  {'failed: ' if phase.failed else ''}{phase.what}")
            for note in phase.notes:
                typer.echo(f"{'':19}{note}")

        phases = find("mmalign.recipes", "rehearse")(load(config, overrides or []), kind=kind, keep=keep, say=say)
        seconds = sum(phase.seconds for phase in phases)
        if phases[-1].failed:
            typer.echo(f"{config}: failed at {phases[-1].name}: {phases[-1].what}", err=True)
            raise typer.Exit(2)
        typer.echo(f"{config}: rehearsed in {seconds:.0f} s, every phase once")


@app.command()
def sample(
    context: typer.Context,
    run: Run,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be given more than once.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Samples for each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first sample.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write; the run's own folder by default.")] = None,
) -> None:
    """Sample from a trained run."""
    with _mistakes_as_lines(context):
        from mmalign.rooms import find

        folder = _run_folder(run)
        made = find("mmalign.recipes", "sample")(folder, prompts=prompt or None, count=count, seed=seed, out=out)
        typer.echo(f"samples: {made}")


@app.command()
def export(
    context: typer.Context,
    run: Run,
    out: Annotated[Path | None, typer.Option(help="A folder that is not there yet; runs/NAME/export by default.")] = None,
    parameters: Annotated[str | None, typer.Option("--set", help="trained, ema or best; the best of them by default.")] = None,
) -> None:
    """Write a run's weights as diffusers and peft load them, with a model card; loaded again and compared before they appear."""
    with _mistakes_as_lines(context):
        from mmalign.rooms import find

        made = find("mmalign.recipes", "export")(_run_folder(run), out=out, parameters=parameters)
        typer.echo(f"export: {made.path} (parameters: {made.parameters}; forms: {', '.join(made.forms)})")
        if "diffusers" not in made.forms and "peft" in made.forms:
            typer.echo(
                "this pipeline has no load_lora_weights: peft/ is for peft, and merged/ is the pipeline with the LoRA in its weights"
            )


@app.command()
def report(
    context: typer.Context,
    run: Run,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write a run's report again from its files."""
    with _mistakes_as_lines(context):
        folder = _run_folder(run)
        from mmalign.report import build

        page = build(folder)
        typer.echo(f"report: {page}")
        if show:
            import webbrowser

            webbrowser.open(Path(page).resolve().as_uri())


@app.command("inspect")
def inspect_model(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder, or a pipeline class of diffusers (then a tiny twin).")],
    call: Annotated[
        list[str] | None, typer.Option("--call", metavar="KEY=VALUE", help="An argument of its call; as often as needed.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the YAML to start from.")] = None,
) -> None:
    """Look at a model: what is trained, how it is guided, whether replay is exact, what it costs, and a YAML to start from."""
    with _mistakes_as_lines(context):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        found = _inspected(model, call or [], dtype)
        table = Table(title=model, title_justify="left", show_header=False)
        for row in found.rows:
            table.add_row(f"[bold]{row.name}[/bold]", f"[red]failed:[/red] {escape(row.value)}" if row.failed else escape(row.value))
        Console().print(table)
        typer.echo(found.start)
        if out is not None:
            out.write_text(found.start, encoding="utf-8")


@app.command()
def methods(context: typer.Context) -> None:
    """List the methods: name, meaning, paper."""
    with _mistakes_as_lines(context):
        from rich.console import Console
        from rich.table import Table

        from mmalign.rooms import index

        table = Table("method", "what it is", "paper", title="mmalign.methods", title_justify="left")
        for name, (entry, *_) in index("mmalign.methods").items():
            if entry.function:
                table.add_row(f"[bold]{name}[/bold]", entry.meaning, entry.paper)
        Console().print(table)


@app.command()
def explain(context: typer.Context, method: Annotated[str, typer.Argument(help="A name of `mmalign methods`, or an import path.")]) -> None:
    """Explain a method: formula, keywords and defaults, paper, and which library does what."""
    with _mistakes_as_lines(context):
        from mmalign.dialects import explanation
        from mmalign.rooms import find

        _print_explanation(explanation(find("mmalign.methods", method)))


def _print_explanation(told: Explanation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    out, rows = Console(highlight=False), Table.grid(padding=(0, 2))
    out.print(f"[bold]{told.name}[/bold]  {escape(told.meaning)}")
    out.print(Padding(escape(told.formula), (1, 2)))
    for names, meaning in told.keywords:
        defaults = ", ".join(repr(told.defaults[name.strip()]) for name in names.split(",") if name.strip() in told.defaults)
        rows.add_row(f"[bold]{escape(names)}[/bold]", escape(defaults), escape(meaning))
    out.print(rows)
    remarks = {"": told.remarks, "Paper": told.paper, "Deviations": told.deviations}
    for head, text in remarks.items():
        if text:
            out.print(f"\n[bold]{head}[/bold]{'  ' if head else ''}{escape(text)}")
    for dialect in told.dialects:
        words = ", ".join(f"{name}={value!r}" for name, value in dialect.settings.items()) or "as it is"
        out.print(f"\n[bold]{escape(dialect.who)}[/bold]  {escape(words)}\n  {escape(dialect.note)}")
    if told.dialects:
        who = told.dialects[0].who.split()[0]
        out.print(f"\nIn a config: [bold]method: {{use: {told.name}, like: {escape(who)}}}[/bold]")


@contextmanager
def _mistakes_as_lines(context: typer.Context) -> Iterator[None]:
    """Turns exceptions into lines on stderr and an exit code, unless ``--debug`` was given."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        if context.obj:
            raise
        from mmalign.types import UserError  # imports torch, so only here

        mine = isinstance(error, UserError)
        lines = str(error) if mine else f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
        typer.echo(lines, err=True)
        raise typer.Exit(2 if mine else 1) from None


def _inspected(model: str, words: list[str], dtype: str | None) -> Any:
    import yaml

    from mmalign.config import build_part
    from mmalign.policies.inspection import inspection
    from mmalign.policies.starting import Opened, opened
    from mmalign.rooms import index
    from mmalign.types import UserError

    call = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"--call {word}: takes KEY=VALUE")
        call[key] = yaml.safe_load(value)
    if model in index("mmalign.worlds"):
        node = {"use": model}
        found = Opened(build_part({"pipeline": node}, "pipeline"), {}, node)
    else:
        found = opened(model, dtype=dtype)
    return inspection(found.pipe, call=call, stand_ins=found.stand_ins, node=found.node)


def _train(node: dict[str, Any], *, resume: bool = False) -> Path:
    """Builds and runs a config, prints where the run and its report are, and returns the path of the report."""
    from mmalign.config import execute, plan
    from mmalign.signatures import parameters
    from mmalign.types import UserError

    call, errors = plan(node)
    if call is None or errors:
        raise UserError("\n".join(errors))
    takes, any_key = parameters(call.function)
    if resume and not (any_key or "resume" in takes):
        raise UserError(f"--resume: the recipe {call.name} cannot resume")
    extra: dict[str, Any] = {"resume": True} if resume else {}
    if "config" in takes:
        extra["config"] = node
    run = execute(call, **extra)
    folder = Path(run.path).resolve()
    page = folder / "report.html"
    typer.echo(f"run:    {folder}")
    typer.echo(f"report: {page}")
    return page


def _run_folder(run: str) -> Path:
    from mmalign.types import UserError

    for candidate in (Path(run), Path("runs") / run):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UserError(f"{run}: no run there (no config.yaml); takes the folder of a run, or a name under runs/")


def _fresh_name(runs: Path, name: str) -> str:
    """The name itself, or the first of name-2, name-3, ... that is not there yet: a run is never overwritten."""
    candidate, number = name, 1
    while (runs / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate
