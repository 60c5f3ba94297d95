"""The command line. Nothing heavy is imported before a command needs it, so that ``mmalign --help`` answers at once.

Mistakes of the user end in one line per mistake and exit code 2; anything else in one line and exit code 1; ``--debug`` shows the
traceback instead.
"""

from __future__ import annotations

import os
import sys
import warnings

from mmalign.cli import runs, guided, pairs, evaluations, models, lookup, migration, selftest  # noqa: F401  # isort: skip  (each adds its commands, in the order of --help)
from mmalign.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """The ``mmalign`` command. ``--debug`` may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # so that `use: my_module.my_method` finds a file of the user's, and no file there hides a library
    if not sys.stderr.isatty():  # in a pipe or a file, bars of libraries are one long line; read by tqdm as it is imported
        os.environ.setdefault("TQDM_DISABLE", "1")
    with warnings.catch_warnings():  # torchvision's, of another build than torch: advice for nobody who runs a command
        warnings.filterwarnings("ignore", "Failed to load image Python extension")
        app(args=arguments)
