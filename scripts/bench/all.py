"""All benchmarks, one behind the other, as one page: machine, versions, ratios of turns with their ranges, processor time beside the clock.

    python scripts/bench/all.py                            # half an hour on two cores with nothing beside
    python scripts/bench/all.py generators growth --out runs/bench.md

What a script prints goes to the terminal and into the page as it comes. A script that fails is named there with its last line, the
others run, and the end is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS: dict[str, list[str]] = {
    "generators": [],
    "overhead": [],
    "growth": [],
    "scaling": [],
    "plan": ["--plan"],
    "floors": [],
    "text": [],
    "vlm": [],
    "overlap": [],
    "footprint": [],
    "gpu": ["--tiny", "--device", "cpu", "--eager", "--dtype", "float32", "--steps", "2", "--rows", "2", "--tokens", "4"],
}
FILES = {"plan": "scaling"}
PLAIN = {"text", "vlm", "overlap", "footprint"}  # their tables are for a terminal


def run(name: str, page: Path) -> bool:
    """One script; whether it ended well."""
    command = [sys.executable, "-W", "ignore", str(FOLDER / f"{FILES.get(name, name)}.py"), *SCRIPTS[name]]
    began = time.perf_counter()
    with page.open("a", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        out.write(f"\n## {name}\n\n" + ("```\n" if name in PLAIN else ""))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", errors="replace")
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            out.write(line)
            out.flush()
        code = process.wait()
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
        out.write(("```\n" if name in PLAIN else "") + f"\n{time.perf_counter() - began:.0f} s\n")
        if code:
            why = f"{name} ended with {code}: {said[-1] if said else 'it said nothing'}"
            print(why, file=sys.stderr)
            out.write(f"\n**{why}**\n")
    return code == 0


def main(names: list[str], page: Path) -> int:
    """The page; 1 where a script failed."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"# Benchmarks, {time.strftime('%Y-%m-%d')}\n", encoding="utf-8")
    good = [run(name, page) for name in names]
    print(f"\n{page}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=", ".join(SCRIPTS))
    parser.add_argument("--out", type=Path, default=Path("runs") / "bench.md")
    given = parser.parse_args()
    if strange := [name for name in given.scripts if name not in SCRIPTS]:
        sys.exit(f"scripts: got {strange[0]!r}, takes {', '.join(SCRIPTS)}")
    sys.exit(main(given.scripts or list(SCRIPTS), given.out))
