"""Where models go that nobody has put anywhere."""

from __future__ import annotations

import os

import torch


def default_device() -> torch.device:
    """A GPU if there is one, and of the processes of a machine (``LOCAL_RANK``) each its own; else the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")
