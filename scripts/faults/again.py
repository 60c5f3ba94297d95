"""Every failure that people have met with, tried again as they met it: what is typed, and the line that is printed now.

    python scripts/faults/again.py              # all of them, by kind
    python scripts/faults/again.py 9 17         # those of some kinds
    python scripts/faults/again.py --table      # as a table in Markdown
    python scripts/faults/again.py 9 --whole    # with all that is printed

A failure is a function in a file beside this one: it writes small files into a folder of its own, runs the command or a few lines of
Python, and gives back what was printed. Beside it stand the words that have to be in it. Nothing but what the repository holds is read, no
network and no GPU is used, and what is random has a seed. Ends with 1 where something else is printed, or a traceback.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
import warnings

import crashes  # noqa: F401
import promises  # noqa: F401
import readings  # noqa: F401
import reliability  # noqa: F401
import sight  # noqa: F401
import silent  # noqa: F401
import watched  # noqa: F401
from user import FAULTS, Try, somebody


def tried(shows: str, act: Try) -> tuple[str, str, str, bool]:
    """What was typed, the line that matters of what was printed, all of it, and whether it is as it should be."""
    with somebody() as user:
        try:
            printed = act(user)
        except Exception:  # whatever escapes is a finding: a user would have met it, and the other tries go on
            printed = traceback.format_exc()
            return "; ".join(user.commands), printed.strip().splitlines()[-1], printed, False
        printed = printed.replace(str(user.folder.resolve()) + "/", "").replace(str(user.folder) + "/", "")
        match = re.search(shows, printed, re.MULTILINE)
        lines = [line for line in printed.splitlines() if line.strip()]
        line = next((line for line in lines if match and match[0].splitlines()[0] in line), lines[-1] if lines else "")
        return "; ".join(user.commands), line.strip(), printed, match is not None and "Traceback" not in printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", type=int, help="numbers of kinds, all by default")
    parser.add_argument("--only", default="", help="words of what failed")
    parser.add_argument("--table", action="store_true", help="Markdown")
    parser.add_argument("--whole", action="store_true", help="all that is printed")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    wrong = count = 0
    if given.table:
        print("| kind | what failed | tried | printed now | |\n|---|---|---|---|---|")
    for kind, what, shows, act in sorted(FAULTS, key=lambda row: row[0]):
        if (given.kinds and kind not in given.kinds) or given.only not in what:
            continue
        command, line, printed, fine = tried(shows, act)
        untried = printed.startswith("not tried: ")
        wrong, count, verdict = wrong + (not fine and not untried), count + (not untried), "mended" if fine else "WRONG"
        verdict = "not tried" if untried else verdict
        if given.table:
            cells = (str(kind), what, command, line[:400], verdict)
            print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |", flush=True)
        else:
            print(f"{kind:>2} {what}\n   $ {command}\n   {line[:600]}\n   {verdict}", flush=True)
        if given.whole or verdict == "WRONG":
            print("\n".join(f"      {row}" for row in printed.splitlines()[-40:]), file=sys.stdout if given.whole else sys.stderr)
    print(f"{count} tried, {wrong} wrong", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
