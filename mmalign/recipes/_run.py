"""What a recipe returns: a run that has ended, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.arguments.calls import checking
from mmalign.distributed.team import Team
from mmalign.report import build
from mmalign.training.journal import Journal


@dataclass(frozen=True)
class Report:
    """The page of a run."""

    path: Path

    def open(self) -> None:
        """Shows it in the default browser."""
        import webbrowser

        webbrowser.open(self.path.resolve().as_uri())


@dataclass(frozen=True)
class Run:
    """A run that has ended: its folder, its numbers (``summary.json``), the policy as it is now."""

    path: Path
    summary: dict[str, Any]
    policy: Any

    @property
    def report(self) -> Report:
        """Its page."""
        return Report(self.path / "report.html")

    @checking
    def sample(self, prompts: Sequence[str] | None = None, *, count: int = 4, seed: int = 0, out: str | Path | None = None) -> Path:
        """A picture of samples of the best parameters, as ``mmalign sample RUN`` makes it (``commands.sample``); returns its path."""
        from mmalign.commands.sample import sample

        return sample(self.path, prompts=prompts, count=count, seed=seed, out=out, trust=True)  # this process made it

    @checking
    def export(self, out: Path | None = None, *, parameters: str | None = None, form: Literal["merged", "comfyui"] | None = None) -> Path:
        """Its weights as diffusers and peft load them, as ``mmalign export RUN`` writes them (``commands.export``); returns the folder."""
        from mmalign.commands.export import export

        return export(self.path, out=out, parameters=parameters, trust=True, form=form).path


def concluded(journal: Journal, policy: Any) -> Run:
    """The run of a journal whose steps are done, with its page."""
    ended = journal.conclude()
    return paged(Run(ended.path, ended.summary, policy), journal.team, journal.say)


def paged(run: Run, team: Team, say: Callable[[str], None] = print) -> Run:
    """A run that has ended, with its page; one that cannot be made costs a line, since all else is saved."""
    try:
        if team.main:
            build(run.path)
    except Exception as error:  # whatever it is, hours of training do not end with it
        say(f"report: could not be made ({type(error).__name__}: {' '.join(str(error).split())}); mmalign report {run.path}")
    team.tell("ended")  # a launcher may end all processes once one of them has
    return run
