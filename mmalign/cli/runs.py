"""Commands that make runs, and that read them."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import (
    Config,
    OnRay,
    Overrides,
    Processes,
    RunArgument,
    Shared,
    Trust,
    app,
    configured,
    echo,
    mistakes_as_lines,
    run_folder,
    several,
)
from mmalign.cli.endings import ending

ALONE = ("export", "rehearse")


@app.command(cls=Shared)
def train(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of this config where it stopped.")] = False,
    processes: Processes = "1",
    ray: OnRay = False,
) -> None:
    """Train what a config describes; everything in it is checked before anything is built."""
    with mistakes_as_lines(context):
        if processes != "1" or ray:
            from mmalign.config import load

            _refuse_mistakes(load(config, overrides or []))
            several(context, processes, ray=ray)
        train_config(configured(config, overrides), resume=resume)


@app.command()
def check(context: typer.Context, config: Config, overrides: Overrides = None, trust: Trust = False) -> None:
    """Resolve and check a config without loading a model, and without importing what it names outside of mmalign."""
    with mistakes_as_lines(context):
        from mmalign.config import check as mistakes
        from mmalign.config import external_code, load
        from mmalign.types import UserError

        node = load(config, overrides or [])
        if lines := mistakes(node, trust=trust):
            raise UserError("\n".join(lines))
        typer.echo(f"{config}: no mistakes found")
        names = [] if trust else external_code(node)
        for name in names:
            typer.echo(f"outside of mmalign, not imported: {name}{f', in {name.file}' if name.file else ''}")
        if names:
            typer.echo("training imports and runs these; check --trust imports them, and checks all of what they take")


@app.command()
def rehearse(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    kind: Annotated[str | None, typer.Option("--class", metavar="NAME", help="The pipeline's class, where nothing else tells it.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A new folder that keeps the rehearsal's runs.")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Count the memory of the real run instead; nothing is loaded.")] = False,
    card: Annotated[str | None, typer.Option(help="With --memory: h200, h100, a100, 4090, ... or a size, 24GB.")] = None,
) -> None:
    """Go through every phase of a run on the CPU with a tiny twin of its model, or count its memory, before a GPU is rented."""
    with mistakes_as_lines(context):
        from mmalign.rooms import find
        from mmalign.types import UserError

        if card is not None and not memory:
            raise UserError(f"--card: got {card} without --memory, which it is about; takes both")
        if memory:
            counted = find("mmalign.commands", "footprint")(configured(config, overrides), card=card, kind=kind)
            typer.echo("\n".join(counted.lines))
            if not counted.fits:
                raise typer.Exit(2)
            return

        def say(phase: Any) -> None:
            typer.echo(f"{phase.name:<9}{phase.seconds:6.1f} s  {'failed: ' if phase.failed else ''}{phase.what}")
            for note in phase.notes:
                typer.echo(f"{'':19}{note}")

        phases = find("mmalign.commands", "rehearse")(configured(config, overrides), kind=kind, keep=keep, say=say)
        seconds = sum(phase.seconds for phase in phases)
        if phases[-1].failed:
            typer.echo(f"{config}: failed at {phases[-1].name}: {phases[-1].what}", err=True)
            raise typer.Exit(2)
        typer.echo(f"{config}: rehearsed in {seconds:.0f} s, every phase once")


@app.command(cls=Shared)
def sample(  # the options of a command
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run; with --reward or --guidance any model, see compare.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be given more than once.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Samples for each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first sample.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A .png, .mp4, or a folder for single files; in the run by default.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option("--reward", help="Guide by it: a name of mm.rewards, or {use: NAME, ...}; the sum of several.")
    ] = None,
    guidance: Annotated[str | None, typer.Option(help='How to guide: a name of mm.guidance and settings, "dps scale=5".')] = None,
    call: Annotated[list[str] | None, typer.Option("--call", metavar="KEY=VALUE", help="An argument of the call, under guidance.")] = None,
    trust: Trust = False,
    processes: Processes = "1",
) -> None:
    """Sample from a trained run, from a world's base, or from any model under guidance."""
    with mistakes_as_lines(context):
        several(context, processes)
        from mmalign.distributed.team import joined
        from mmalign.rooms import find, index

        if reward or guidance or run in index("mmalign.worlds"):
            from mmalign.cli.guided import guided

            options: dict[str, Any] = {"reward": reward or [], "guidance": guidance, "prompt": prompt or [], "call": call or []}
            echo(guided(run, count=count, seed=seed, out=out, trust=trust, **options))
            return
        folder = run_folder(run)
        path = find("mmalign.commands", "sample")(folder, prompts=prompt or None, count=count, seed=seed, out=out, trust=trust)
        if path.suffix == ".jsonl" and joined().main:
            echo(_completions(path))
        echo(f"samples: {path}")


def _completions(path: Path) -> str:
    """What a language model answered, under each prompt."""
    from mmalign.conversations import question

    rows, lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line], list[str]()
    for place, row in enumerate(rows):
        if place == 0 or row["prompt"] != rows[place - 1]["prompt"]:
            lines.append(f"prompt: {question(row['prompt'])}")
        lines.append(f"  seed {row['seed']}: {row['completion']}")
    return "\n".join(lines)


@app.command()
def export(  # the options of a command
    context: typer.Context,
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="A folder that is not there yet; runs/NAME/export by default.")] = None,
    parameters: Annotated[str | None, typer.Option("--set", help="trained, ema or best; the best of them by default.")] = None,
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Put it on the hub too, as a model of that name.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: everybody may see a repository that is made for it.")] = False,
    license: Annotated[str | None, typer.Option(metavar="ID", help="For its card: apache-2.0, mit, ...")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="The whole model, LoRA in its weights, in place of an adapter.")] = False,
    comfyui: Annotated[
        bool, typer.Option("--comfyui", help="Also a file with ComfyUI's and kohya's names, of SD, SDXL, Flux, ...")
    ] = False,
    trust: Trust = False,
) -> None:
    """Write a run's weights as diffusers and peft load them, with a model card; loaded again and compared before they appear."""
    with mistakes_as_lines(context):
        from mmalign.rooms import find
        from mmalign.types import UserError

        forms = [form for form, wanted in {"merged": merge, "comfyui": comfyui}.items() if wanted]
        if len(forms) > 1:
            raise UserError("export: got --merge and --comfyui, which is a file of LoRA; takes one of them")
        how = {"push": push, "private": not public, "license": license, "form": next(iter(forms), None)}
        exported = find("mmalign.commands", "export")(run_folder(run), out=out, parameters=parameters, trust=trust, **how)
        typer.echo(f"export: {exported.path} (parameters: {exported.parameters}; forms: {', '.join(exported.forms)})")
        if exported.address is not None:
            typer.echo(f"on the hub: {exported.address}")
        if exported.code:
            typer.echo(f"with code of yours, which its page needs: {', '.join(exported.code)}")
        if exported.forms[:2] == ("peft", "full"):
            typer.echo(
                "this pipeline has no load_lora_weights: peft/ is for peft, and merged/ is the pipeline with the LoRA in its weights"
            )


@app.command()
def report(
    context: typer.Context,
    run: RunArgument,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write a run's report again from its files."""
    with mistakes_as_lines(context):
        folder = run_folder(run)
        from mmalign.report import build

        page = build(folder)
        typer.echo(f"report: {page}")
        if show:
            import webbrowser

            webbrowser.open(Path(page).resolve().as_uri())


def train_config(node: dict[str, Any], *, resume: bool = False) -> Path | None:
    """Builds and runs a config, prints where the run and its report are, and returns the path of the report.

    A config of a command, such as ``calibrate``, makes no run: what it made is said, and None returned.
    A run that a signal ended exits as the signal would have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP; one that learned
    nothing, stopped learning, or had too many numbers that are not finite, with 1.
    """
    from mmalign.arguments.signatures import make
    from mmalign.config import build
    from mmalign.distributed.shards import cutting, refuse_alone
    from mmalign.distributed.team import joined
    from mmalign.files import plain
    from mmalign.recipes._run import Run
    from mmalign.training.settings import Devices
    from mmalign.training.updates import allocator

    team, devices, resume = joined(), node.get("devices") or {}, resume or node.get("resume") is True
    refuse_alone(devices.get("place"), team)
    if team.size > 1:
        team.agree("config", plain(node))
        _refuse_mistakes(node)
    if team.main:  # what it says, the others hear
        _refuse_folder(node, resume=resume)
    if devices.get("place") == "fsdp2":
        allocator.give_back()
    with cutting(make(Devices, devices) if team.size > 1 else Devices(), team):
        run = build(node, **({"resume": True} if resume else {}))
    if isinstance(run, (Mapping, Path)):
        counts = ", ".join(f"{count} {name}" for name, count in run.items()) if isinstance(run, Mapping) else ""
        echo(f"{node['use']}: {node.get('out', 'done')}{f' ({counts})' if counts else ''}")
        return None
    folder = Path(run.path).resolve()
    page = folder / "report.html"
    if team.main:
        said = (f"run:    {folder}", f"report: {page}")
        lines = ending(folder, run.summary, **_made(run.policy)) if isinstance(run, Run) else said
        for line in lines:
            typer.echo(line)
    team.tell("told")  # a launcher ends all processes with the first that does not end with 0
    if isinstance(run, Run) and (name := run.summary.get("interrupted_by")):
        raise typer.Exit(128 + signal.Signals[name])
    if isinstance(run, Run) and run.summary.get("status") in ("learned nothing", "stopped learning", "not finite"):
        raise typer.Exit(1)
    return page


def _made(policy: Any) -> dict[str, bool]:
    """What ``ending`` wants to know of what was trained."""
    from mmalign.commands.export import inner

    scores = policy.kind == "score"
    return {"scores": scores, "exports": scores or inner(policy) is not None}


def _refuse_mistakes(node: Mapping[str, Any]) -> None:
    """Errors: UserError for what several processes would each refuse, and for a command that only one carries out."""
    from mmalign.config import check as mistakes
    from mmalign.types import UserError

    if lines := mistakes(node, trust=True):
        raise UserError("\n".join(lines))
    if node["use"] in ALONE:
        raise UserError(f"use: {node['use']} is done by one process; takes no --processes and no launcher")


def _refuse_folder(node: Mapping[str, Any], *, resume: bool) -> None:
    """Errors: UserError for a run that is there already, for none to resume, and for other numbers than it was made with (of rounds, they
    say it themselves), before any model is loaded for it."""
    import inspect

    from mmalign.rooms import find, index
    from mmalign.runs.folder import refuse, refuse_other_numbers
    from mmalign.training.journal import MAY_DIFFER
    from mmalign.training.settings import RunSettings

    if node.get("use") not in index("mmalign.recipes"):
        return
    usual = inspect.signature(find("mmalign.recipes", node["use"])).parameters["run"].default
    own = node.get("run")
    run = {"name": RunSettings.name, "folder": RunSettings.folder, **own} if isinstance(own, Mapping) else vars(usual)
    if isinstance(run["name"], str) and isinstance(run["folder"], str):  # what else they may be, the config's own check says
        path = refuse(run["folder"], run["name"], resume=resume)
        if resume and node["use"] != "rounds":
            refuse_other_numbers(path, node, MAY_DIFFER)
