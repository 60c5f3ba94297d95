"""The application, and what its commands share: their arguments, and how mistakes end."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mmalign import __version__
from mmalign.arguments.environment import masked
from mmalign.cli.completion import completed_changes

WORDS = "mmalign.words"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _configs(incomplete: str) -> list[str]:
    from mmalign.lookup.catalogue import configs

    files = [str(path) for path in Path().glob("*.y*ml")]
    return [name for name in [*files, *configs()] if name.startswith(incomplete)]


def _runs(incomplete: str) -> list[str]:
    return [name for name in sorted(path.parent.name for path in Path("runs").glob("*/config.yaml")) if name.startswith(incomplete)]


def completed_kinds(incomplete: str) -> list[str]:
    """The kinds that `list` knows, for a shell that completes them."""
    from mmalign.lookup.catalogue import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def completed_names(incomplete: str) -> list[str]:
    """Everything that `explain` knows, for a shell that completes it."""
    from mmalign.lookup.catalogue import KINDS, everything

    return sorted({listing.name for kind in KINDS for listing in everything(kind) if listing.name.startswith(incomplete)})


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a short name like digits/demo.", autocompletion=_configs)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key.sub=value", help="Changes to the config.", autocompletion=completed_changes)
]
Trust = Annotated[bool, typer.Option("--trust", help="Import and run what its config names outside of mmalign.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its name under runs/.", autocompletion=_runs)]
Processes = Annotated[str, typer.Option(metavar="N", help="Processes of this machine, one for each GPU; torchrun for several machines.")]
OnRay = Annotated[bool, typer.Option("--ray", help="Start the processes as actors of a Ray cluster: RAY_ADDRESS, or this machine.")]
TOGETHER = ("train", "eval", "sample", "pairs", "compare")
"""Commands that several processes carry out as one."""


class Shared(TyperCommand):
    """A command that several processes carry out: it keeps its words, with which ``several`` starts it again."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)


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
    if os.environ.get("WORLD_SIZE", "1") != "1" and context.invoked_subcommand not in TOGETHER:
        count = f"a launcher has started {os.environ['WORLD_SIZE']} processes (WORLD_SIZE)"
        echo(f"{context.invoked_subcommand}: {count}, and this command runs in one; takes no launcher", err=True)
        raise typer.Exit(2)
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        takes = "takes accelerate launch --multi_gpu --num_processes N, also where there is no GPU, or --processes N without a launcher"
        echo(f"accelerate launch: was asked for several processes (MASTER_PORT) and has started one (no WORLD_SIZE); {takes}", err=True)
        raise typer.Exit(2)


def echo(line: str, *, err: bool = False) -> None:
    """A line of the main process; the others are silent."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(line, err=err)


def printed(line: str) -> None:
    """A line that is there at once, also in a pipe."""
    print(line, flush=True)


def in_a_browser(wanted: bool) -> Callable[[str], None]:
    """What opens an address, where that is wanted, and says so where there is no browser."""

    def shown(address: str) -> None:
        import webbrowser

        if wanted and not webbrowser.open(address):
            echo(f"no browser could be opened here: open {address} in yours")

    return shown


def several(context: typer.Context, processes: str, *, ray: bool = False) -> None:
    """Starts this command again in so many processes, and ends with what they end with; goes on where that is one.

    ray: on a Ray cluster, also one. Errors: UserError for what is no number of processes, and what ``launch`` and ``launch_on_ray`` refuse.
    """
    if processes == "1" and not ray:
        return
    from mmalign.distributed.launch import launch
    from mmalign.distributed.on_ray import launch_on_ray
    from mmalign.types import UserError

    if not processes.removeprefix("-").isdecimal():
        raise UserError(f"--processes: got {processes!r}, takes a number, 1 or more")
    words, own = list[str](), iter(context.meta[WORDS])
    for word in own:
        if word == "--processes":
            next(own)
        elif not word.startswith("--processes=") and word != "--ray":
            words.append(word)
    start = launch_on_ray if ray else launch
    raise typer.Exit(start([*(["--debug"] if context.obj else []), str(context.info_name), *words], int(processes)))


@contextmanager
def mistakes_as_lines(context: typer.Context) -> Iterator[None]:
    """Turns exceptions into lines on stderr and an exit code; ``--debug`` shows their tracebacks, without the secrets in them."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # whoever read the lines has seen enough of them
        raise
    except KeyboardInterrupt:
        echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        from mmalign.types import UserError  # imports torch, so only here

        if _said_by_the_main_process(error):
            raise typer.Exit(2) from None
        mine = isinstance(error, UserError)
        lines = str(error) if mine else f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
        if context.obj:
            lines = "".join(traceback.format_exception(error)).rstrip("\n")
        typer.echo(masked(lines), err=True)
        raise typer.Exit(2 if mine else 1) from None


def _said_by_the_main_process(error: Exception) -> bool:
    """Tells the other processes of a run, where there are any, that this one stops; whether the main one has the line to print."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from mmalign.distributed.team import joined
    from mmalign.types import UserError

    try:
        team = joined()
    except UserError:  # which may be the very error
        return os.environ.get("RANK", "0") != "0"
    team.fail(error)
    return not team.main


def configured(config: str, overrides: list[str] | None) -> dict[str, Any]:
    """A config that is about to be carried out; says first what it names outside of mmalign, which will be imported and run then."""
    from mmalign.config import external_code, load

    node = load(config, overrides or [])
    if names := external_code(node):
        echo(f"{config}: imports code from outside of mmalign: {', '.join(map(str, names))}", err=True)
    return node


def run_folder(run: str) -> Path:
    """The folder of a run, given by its path or by its name under runs/. Errors: UserError where there is none."""
    from mmalign.runs.folder import found
    from mmalign.types import UserError

    if (folder := found(run)) is not None:
        return folder
    raise UserError(f"{run}: no run there (no config.yaml); takes the folder of a run, or a name under runs/")
