"""The command that asks people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import Trust, app, echo, in_a_browser, mistakes_as_lines, printed


@app.command()
def label(  # the options of a command
    context: typer.Context,
    out: Annotated[Path, typer.Argument(metavar="LABELS.jsonl", help="The file of pairs; what is there already goes on.")],
    model: Annotated[list[str] | None, typer.Option(help="A run, or a config; several are set against each other, blind.")] = None,
    pairs: Annotated[str | None, typer.Option(help="A file of pairs to judge instead, or a node of records as YAML.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be given more than once.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts; the model's own by default.")] = None,
    outputs: Annotated[int, typer.Option(min=2, help="Outputs of each prompt, of one model.")] = 2,
    limit: Annotated[int, typer.Option(min=0, help="Items at most; 0 for all.")] = 64,
    each: Annotated[int | None, typer.Option(min=1, help="Annotators of each item; all of them by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first output.")] = 0,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets others in, with the key of the address that is printed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8200,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    trust: Trust = False,
) -> None:
    """Judge outputs of models on a page of this machine, blind, by keys; each judgement is a pair to train on at once."""
    with mistakes_as_lines(context):
        from mmalign.rooms import find

        counts = find("mmalign.commands", "label")(
            str(out), models=model or [], pairs=_node(pairs), prompts=_prompts(prompt or [], prompts), outputs=outputs,
            limit=limit or None, each=each, seed=seed, host=host, port=port, trust=trust, ready=in_a_browser(show),
            say=printed,
        )  # fmt: skip
        echo(f"{out}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
        if counts["pairs"]:
            echo(f'train on it: mmalign train CONFIG records="{{use: {_loader(out)}, path: {out}}}"')


def _prompts(words: list[str], file: Path | None) -> list[Any] | None:
    from mmalign.rooms import find

    return [*words, *(find("mmalign.data", "prompts")(str(file)) if file is not None else [])] or None


def _node(pairs: str | None) -> Any:
    """A file, or a node of ``records``. Errors: UserError for YAML that is none."""
    if pairs is None or not pairs.lstrip().startswith("{"):
        return pairs
    import yaml

    from mmalign.types import UserError

    try:
        node = yaml.safe_load(pairs)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, dict) or "use" not in node:
        raise UserError(f"--pairs: got {pairs!r}, takes a file, or a node such as {{use: texts, path: FILE}}")
    return node


def _loader(out: Path) -> str:
    from mmalign.commands.label import loader_of

    return loader_of(str(out))
