"""How the small models of worlds are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def quietly(load: Callable[[], T]) -> T:
    """Without the bars of diffusers and transformers, which take longer to read than two megabytes take to load."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [logging for logging in (of_diffusers, of_transformers) if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        return load()
    finally:
        for logging in shown:
            logging.enable_progress_bar()
