"""Rehearses configs, each in a process of its own, and prints a table.

python scripts/rehearse.py                 # all under configs/
python scripts/rehearse.py wan* digits/*   # some; nothing is downloaded
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> int:
    """The exit code: 0 where all that were asked for went through."""
    patterns = sys.argv[1:] or ["*"]
    names = [str(path.relative_to(CONFIGS).with_suffix("")) for path in sorted(CONFIGS.rglob("*.yaml"))]
    chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    failed = 0
    for name in chosen:
        began = time.monotonic()
        command = [sys.executable, "-m", "mmalign", "rehearse", name]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
        failed += done.returncode != 0
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        print(f"{name:<28}{time.monotonic() - began:6.1f} s  {lines[-1].removeprefix(f'{name}: ') if lines else 'no output'}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} rehearsed")
    return int(failed > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main())
