"""The command line. Nothing heavy is imported before a command needs it, so that ``mmalign --help`` answers at once.

Mistakes of the user end in one line per mistake and exit code 2; anything else in one line and exit code 1; ``--debug`` shows the
traceback instead.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mmalign.cli import runs, demos, sweeps, guided, pairs, labelling, watching, evaluations, models, serving, lookup, migration, selftest  # noqa: F401  # isort: skip  (each adds its commands, in the order of --help)
from mmalign.cli.app import app, echo

__all__ = ["app", "main"]
HERE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def main() -> None:
    """The ``mmalign`` command. ``--debug`` may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # so that `use: my_module.my_method` finds a file of the user's, and no file there hides a library
    with _compact(), warnings.catch_warnings():  # of libraries about each other: advice for nobody who runs a command
        warnings.filterwarnings("ignore", "Failed to load image Python extension")  # torchvision's, of another build than torch
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # transformers' to peft
        warnings.showwarning = partial(_shown, warnings.showwarning)
        app(args=arguments)


def _shown(otherwise: Callable[..., None], message: Warning | str, category: type[Warning], filename: str, *more: Any) -> None:
    """A warning of mmalign's own is a line for whoever runs a command; those of libraries look as they always do."""
    if category is UserWarning and os.path.abspath(filename).startswith(HERE):
        echo(f"warning: {message}", err=True)
    else:
        otherwise(message, category, filename, *more)


@contextlib.contextmanager
def _compact() -> Iterator[None]:
    """In a pipe or a file, where a bar is one long line, tqdm is asked for none; it looks as it is imported, and users may have said."""
    unsaid = not sys.stderr.isatty() and "TQDM_DISABLE" not in os.environ
    if unsaid:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if unsaid:
            os.environ.pop("TQDM_DISABLE", None)
