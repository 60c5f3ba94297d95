"""The README's picture: a run's samples before and after, at the same seeds.

python scripts/picture.py runs/demo assets/demo.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image


def main(run: str, out: str) -> None:
    """Draws the first and the last grid of ``run`` side by side, with real data where the run has it."""
    grids = sorted(Path(run, "samples").glob("step_*.png"))
    panels = {"before": grids[0], "after": grids[-1], "real": Path(run, "samples", "real.png")}
    shown = {title: path for title, path in panels.items() if path.exists()}
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 4.3))
    for axis, (title, path) in zip(axes, shown.items(), strict=True):
        axis.imshow(Image.open(path), interpolation="nearest")
        axis.set_title(title, fontsize=13)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:3])
